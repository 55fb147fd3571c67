//! `reel-sim`: runs CUDA kernels on the CPU and finds races, deadlocks and memory errors.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(reel_sim::front::run_program(std::env::args_os()))
}
