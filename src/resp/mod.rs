//! The Redis protocol: bytes to requests, replies to bytes. No sockets and no async here.
//!
//! [`RequestReader`] cuts requests out of what has arrived, [`render`] writes a [`Reply`] in RESP2 or RESP3, and
//! [`arguments`] reads numbers and keywords out of a request's arguments the way Redis does.

pub mod arguments;
mod inline;
mod render;
mod reply;
pub mod reply_codec;
mod request;

pub use render::render;
pub use reply::Protocol;
pub use reply::Reply;
pub use request::Limits;
pub use request::ProtocolError;
pub use request::Request;
pub use request::RequestReader;
