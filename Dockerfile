# The operator's image, for the gateway and the simulated cloud too: pinned, hashed dependencies, no compiler, no
# package installer, no shell script, not root, nothing written below its root.
#
# The base is a tag of one exact version. A release pins what the tag means on that day, and writes it down:
#   docker build --build-arg BASE=python:3.13.12-slim-trixie@sha256:... --build-arg REVISION=... .
ARG BASE=python:3.13.12-slim-trixie

FROM ${BASE} AS build
WORKDIR /src
COPY requirements requirements
# Wheels alone: there is nothing here that could compile.
RUN python -m venv /opt/vmpool \
    && sed -n '/^setuptools==/,/ # \|^    # /p' requirements/test.txt > requirements/build.txt \
    && /opt/vmpool/bin/pip install --no-cache-dir --disable-pip-version-check --no-compile --only-binary=:all: \
        --require-hashes -r requirements/runtime.txt \
    && /opt/vmpool/bin/pip install --no-cache-dir --disable-pip-version-check --no-compile --only-binary=:all: \
        --require-hashes -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
# Installers have done their work, and only `vmpool dev`, which makes a control plane, needs cryptography. What is left
# of the client library is imported as the operator and the gateway import it; then byte code is made, once, and the
# bill of materials.
RUN /opt/vmpool/bin/pip install --no-cache-dir --disable-pip-version-check --no-compile --no-deps \
        --no-build-isolation . \
    && /opt/vmpool/bin/pip uninstall --yes --quiet cryptography cffi pycparser setuptools pip \
    && cd /opt/vmpool \
    && bin/python -m vmpool.dev.image trim lib/python3.*/site-packages \
    && find . -name __pycache__ -prune -exec rm -r {} + \
    && PYTHONDONTWRITEBYTECODE=1 bin/python -c "import vmpool.rim.process, vmpool.gateway.process, vmpool.cli.simcloud" \
    && bin/python -m compileall -q --invalidation-mode unchecked-hash lib \
    && PYTHONDONTWRITEBYTECODE=1 bin/python -m vmpool.dev.image bom lib/python3.*/site-packages sbom.cdx.json

FROM ${BASE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vmpool" \
    org.opencontainers.image.description="Keeps pools of ready-to-use virtual machines: operator, REST gateway, CLI" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/vmpool /opt/vmpool
# kopf asks for the name of the number, the client library for its home; USER and HOME answer where a cluster chooses
# the number. ssh, to a host of machines, wants the entry.
RUN echo "vmpool:x:65532:65532::/tmp:/usr/sbin/nologin" >> /etc/passwd && echo "vmpool:x:65532:" >> /etc/group
USER 65532:65532
ENV USER=vmpool HOME=/tmp PATH=/opt/vmpool/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 VMPOOL_HTTP_HOST=0.0.0.0 VMPOOL_GATEWAY_HOST=0.0.0.0
EXPOSE 8080 4567
# For engines that look at it; in a cluster the chart's probes ask.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-m", "vmpool.dev.image", "alive"]
ENTRYPOINT ["vmpool"]
CMD ["operator"]
