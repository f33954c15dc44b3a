# syntax=docker/dockerfile:1
FROM python:3.11-slim AS build
WORKDIR /build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/gateway
COPY requirements.lock ./
RUN /opt/gateway/bin/pip install --require-hashes -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY gateway ./gateway
RUN /opt/gateway/bin/pip install --no-deps . && /opt/gateway/bin/pip uninstall --yes pip

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /var/lib/gateway --create-home gateway
COPY --from=build /opt/gateway /opt/gateway
COPY --chown=gateway models /srv/models
ENV PATH=/opt/gateway/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    GATEWAY_MODELS=/srv/models \
    GATEWAY_STATE_DIR=/var/lib/gateway/state \
    GATEWAY_SERVER__HOST=0.0.0.0
USER gateway
WORKDIR /var/lib/gateway
VOLUME /var/lib/gateway
# Inference, gRPC, metrics, admin. Metrics and admin stay on loopback until GATEWAY_ADMIN__HOST and a token are set.
EXPOSE 8000 8001 8002 8003
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=3s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
ENTRYPOINT ["gateway"]
CMD ["serve"]
