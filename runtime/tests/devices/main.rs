//! Tests of the devices with the project's kernels.

mod captured_graph;
mod cuda;
mod sim;
mod timeline;
