#!/usr/bin/env bash
# Succeeds if gRPC's health service on this host answers SERVING. TF Serving's image has no program
# for this call, so bash sends its bytes. haproxy.cfg has the same bytes.
set -eu
exec 3<>"/dev/tcp/127.0.0.1/${1:-8500}"
printf 'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' >&3                   # HTTP/2 preface
printf '\0\0\0\4\0\0\0\0\0' >&3                                  # SETTINGS, empty
printf '\0\0\x49\1\4\0\0\0\1' >&3                                # HEADERS, 73 bytes, stream 1
printf '\x83\x86\4\x1c/grpc.health.v1.Health/Check' >&3          # POST http, :path
printf '\1\7serving\x0f\x10\x10application/grpc\0\2te\x08trailers' >&3  # :authority, content-type
printf '\0\0\5\0\1\0\0\0\1\0\0\0\0\0' >&3                        # DATA, end of stream: empty message
# SERVING is field 1 with value 1 in a message of 2 bytes.
timeout 1 cat <&3 | od -An -v -tx1 | tr -d ' \n' | grep -q 00000000020801
