# The service as one static binary on scratch; `--target catalog` is a gRPC peer for local clusters.
#
# No `# syntax=` line: it would pull a frontend, and whatever BuildKit an engine brings along can build this.
# Nothing is installed but crates, so a builder image without apk or apt does as well.
ARG RUST=1.95

FROM rust:${RUST}-alpine AS toolchain
WORKDIR /build
# Makes the binary carry the list of crates it was built from, for `cargo audit bin` and image scanners.
RUN cargo install cargo-auditable --version 0.7.7 --locked --root /usr/local && rm -rf "$CARGO_HOME/registry"
# Optimizing across crates needs a standard library that carries bitcode. Rust's own does; where a distribution's does
# not, the image is built without rather than not at all: for size then, because it would be past 10 MB, and so slower.
RUN echo 'fn main() {}' >probe.rs \
 && if ! rustc --target "$(uname -m)-unknown-linux-musl" -C lto probe.rs; then \
      echo 'WARNING: the standard library here has no bitcode: no LTO, optimized for size'; \
      mkdir -p "$CARGO_HOME" && printf '[profile.release]\nlto = false\nopt-level = "s"\n' >"$CARGO_HOME/config.toml"; \
    fi
# What scratch lacks. TLS looks for its roots where Debian and Alpine both keep them.
RUN mkdir -p /files/etc/ssl/certs \
 && cp /etc/ssl/certs/ca-certificates.crt /files/etc/ssl/certs/ \
 && echo 'service:x:65532:65532::/:/sbin/nologin' >/files/etc/passwd \
 && echo 'service:x:65532:' >/files/etc/group
# crt-static is said out loud, for the default differs between builds of the musl target. The paths of this image
# stay out of the binary, and so does the time: C code takes it from SOURCE_DATE_EPOCH, which is fixed here because
# crates with C in them compile again whenever it changes. RUSTFLAGS reaches no build script, for every build below names
# its target.
ENV CARGO_INCREMENTAL=0 \
    SOURCE_DATE_EPOCH=0 \
    SQLX_OFFLINE=true \
    RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=/usr/local/cargo/registry/src=/crates --remap-path-prefix=/build=/service"

FROM toolchain AS crates
COPY Cargo.toml Cargo.lock ./
# A stub of every target that Cargo.toml names, so that the dependencies come and compile without the sources: this layer
# and those on top of it change with Cargo.toml and Cargo.lock alone.
RUN mkdir src \
 && touch src/lib.rs \
 && echo 'fn main() {}' | tee src/main.rs build.rs \
 && cargo fetch --locked \
 && cargo tree --frozen --edges normal --prefix none --no-dedupe --target "$(uname -m)-unknown-linux-musl" | sort -u

FROM crates AS dependencies
ARG FEATURES=
RUN cargo build --frozen --release --target "$(uname -m)-unknown-linux-musl" --bin service --no-default-features --features "$FEATURES"

FROM dependencies AS build
COPY . .
ARG GIT_COMMIT=unknown
# The sources are older than the stub's outcome, and cargo goes by time.
RUN find src build.rs -name '*.rs' -exec touch {} + \
 && cargo auditable build --frozen --release --target "$(uname -m)-unknown-linux-musl" --bin service --no-default-features --features "$FEATURES" \
 && cp "target/$(uname -m)-unknown-linux-musl/release/service" /service

# The peer shares no code with the service, so it compiles on the stub and stays as it is when src/ changes.
# It need not be small or fast.
FROM crates AS catalog-build
ENV CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1
COPY build.rs ./
COPY proto ./proto
COPY examples/catalog ./examples/catalog
RUN touch build.rs \
 && cargo build --frozen --release --target "$(uname -m)-unknown-linux-musl" --example catalog --no-default-features \
 && cp "target/$(uname -m)-unknown-linux-musl/release/examples/catalog" /catalog

FROM scratch AS catalog
COPY --from=catalog-build /catalog /catalog
USER 65532:65532
EXPOSE 50051
ENTRYPOINT ["/catalog"]
CMD ["0.0.0.0:50051"]

FROM scratch AS service
ARG TITLE
ARG VERSION
ARG SOURCE
ARG GIT_COMMIT
ARG CREATED
ARG LICENSES
LABEL org.opencontainers.image.title="$TITLE" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.source="$SOURCE" \
      org.opencontainers.image.revision="$GIT_COMMIT" \
      org.opencontainers.image.created="$CREATED" \
      org.opencontainers.image.licenses="$LICENSES"
COPY --from=toolchain /files /
COPY --from=build /service /service
# A number, so that Kubernetes can tell without looking that it is not root. Any other does as well.
USER 65532:65532
EXPOSE 8080 9090
STOPSIGNAL SIGTERM
# Liveness, not readiness: whatever acts on Docker's health restarts the container, and a restart heals no database.
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 CMD ["/service", "health", "live"]
ENTRYPOINT ["/service"]
