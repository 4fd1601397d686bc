# MLflow's server: the nodes' image and a driver for PostgreSQL.
FROM stillhouse
USER root
COPY requirements-postgres.txt /build/
RUN uv pip install --no-cache --python /opt/stillhouse/bin/python --require-hashes --no-deps \
        --requirement /build/requirements-postgres.txt \
    && install --directory --owner=stillhouse /artifacts
USER stillhouse
