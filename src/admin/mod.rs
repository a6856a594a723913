//! The HTTP port: what probes, load balancers and Prometheus ask.

mod http;

pub use http::AdminHandle;
pub use http::Probes;
pub use http::start;
