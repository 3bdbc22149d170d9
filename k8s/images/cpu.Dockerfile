# All programs for CPUs, and a small model: docker build -t fourierkv:dev -f k8s/images/cpu.Dockerfile .
FROM debian:12-slim AS build
WORKDIR /src
ARG PROGRAMS="fourierkv fourierkv-server fourierkv-prefill fourierkv-decode fourierkv-demo fourierkv-loadtest"
COPY bootstrap.sh ./
RUN ./bootstrap.sh
COPY . ./
RUN cmake --preset cpu -Wno-dev --log-level=WARNING && \
    cmake --build --preset cpu --target $PROGRAMS
# Without debug information; and what the programs load, by the names of this distribution.
RUN mkdir -p /image/bin && \
    for program in $PROGRAMS; do \
      strip -o "/image/bin/$program" "build/cpu/bin/$program" || exit 1; \
    done && \
    k8s/images/runtime_packages.sh /image/bin/* > /image/packages

FROM debian:12-slim
LABEL org.opencontainers.image.title="FourierKV" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /image/packages /usr/share/fourierkv/packages
RUN apt-get update && \
    DEBIAN_FRONTEND=noninteractive xargs -a /usr/share/fourierkv/packages \
      apt-get install -y --no-install-recommends && \
    rm -rf /var/lib/apt/lists/* && \
    install -d -o 65532 -g 65532 /var/lib/fourierkv
COPY LICENSE /usr/share/doc/fourierkv/
COPY tests/data/needle-4m /usr/share/fourierkv/models/needle-4m
COPY --from=build /image/bin /usr/local/bin
USER 65532:65532
CMD ["fourierkv", "--help"]
