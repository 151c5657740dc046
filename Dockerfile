# The operator's image: pinned, hashed dependencies, no compiler, no shell script, not root.
FROM python:3.13-slim-bookworm AS build
WORKDIR /src
COPY requirements/runtime.txt requirements/runtime.txt
RUN python -m venv /opt/vmpool \
    && /opt/vmpool/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements/runtime.txt
COPY pyproject.toml README.md LICENSE ./
COPY operator operator
RUN /opt/vmpool/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps .

FROM python:3.13-slim-bookworm
COPY --from=build /opt/vmpool /opt/vmpool
USER 65532:65532
ENV PATH=/opt/vmpool/bin:$PATH PYTHONUNBUFFERED=1 VMPOOL_HTTP_HOST=0.0.0.0
EXPOSE 8080
ENTRYPOINT ["vmpool"]
CMD ["operator"]
