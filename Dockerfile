# The server: files in the volume /data, users in /run/secrets/users.
FROM python:3-slim
COPY . /src
RUN pip install --no-cache-dir /src && rm -rf /src \
    && useradd --uid 10001 --no-create-home rxfiles \
    && install --directory --owner=rxfiles /data
USER rxfiles
VOLUME /data
EXPOSE 6565
HEALTHCHECK CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 6565), 3).close()"]
ENTRYPOINT ["python", "-m", "server"]
CMD ["--host", "0.0.0.0", "--store", "/data", "--auth-file", "/run/secrets/users"]
