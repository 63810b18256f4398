//! The same cluster in containers: `compose.yaml`, driven by Docker Compose.
//!
//! `engine` runs docker and compose, `image` makes the image, `members` says what runs, `fleet` starts, changes and
//! ends a cluster, `breaking` breaks it.

mod breaking;
pub mod engine;
pub mod fleet;
mod image;
pub mod members;
pub mod verbs;

pub use fleet::Fleet;
pub use image::ensure as ensure_image;
