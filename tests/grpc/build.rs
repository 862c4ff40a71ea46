//! Writes client and server of the one service, `echo.Echo`.

use tonic_build::manual::{Builder, Method, Service};

fn main() {
    let method = |name: &str, route: &str| {
        Method::builder()
            .name(name)
            .route_name(route)
            .input_type("crate::Message")
            .output_type("crate::Message")
            .codec_path("tonic_prost::ProstCodec")
    };
    let service = Service::builder()
        .name("Echo")
        .package("echo")
        .method(method("unary", "Unary").build())
        .method(method("upload", "Upload").client_streaming().build())
        .method(method("download", "Download").server_streaming().build())
        .method(method("both", "Both").client_streaming().server_streaming().build())
        .build();
    Builder::new().compile(&[service]);
}
