# A training node; see docker-compose.yml. With GPUs: --build-arg EXTRA=train,demo,gpu
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG EXTRA=train,demo

# Packages first, with empty folders in place of our code: they change less often than our code.
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN touch README.md LICENSE && python -c "import pathlib, tomllib; settings = tomllib.load(open('pyproject.toml', 'rb')); \
    [pathlib.Path(*name.split('.')).mkdir(parents=True, exist_ok=True) \
     for name in settings['tool']['setuptools']['packages']]" \
    && pip install --no-cache-dir -c constraints.txt ".[${EXTRA}]"
COPY README.md LICENSE ./
COPY cluster cluster
COPY serving serving
COPY tfdp tfdp
RUN pip install --no-cache-dir --no-deps --force-reinstall .

# Any user can run it: libraries write to the home directory, so HOME is /tmp.
ENV HOME=/tmp PYTHONUNBUFFERED=1
WORKDIR /project
USER 1000:1000
ENTRYPOINT ["python", "-m"]
CMD ["tfdp.train", "--help"]
