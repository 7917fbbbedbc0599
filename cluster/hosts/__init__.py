"""Workers on other machines: one ssh connection to each host, with a keeper at its other end."""
