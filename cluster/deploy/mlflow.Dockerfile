# MLflow's server: the nodes' image, a driver for PostgreSQL, and what MLflow's login needs.
FROM stillhouse
USER root
COPY requirements-mlflow.txt /build/
RUN uv pip install --no-cache --python /opt/stillhouse/bin/python --require-hashes --no-deps \
        --requirement /build/requirements-mlflow.txt \
    && install --directory --owner=stillhouse /artifacts
USER stillhouse
