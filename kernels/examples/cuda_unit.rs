//! Prints the text that a CUDA compiler reads for one kernel folder: `cargo run --example cuda_unit rms_norm > unit.cu`.

fn main() {
    let name = std::env::args().nth(1).unwrap_or_default();
    match reel_kernels::SOURCES.iter().find(|s| s.name == name) {
        Some(source) => print!("{}", source.text()),
        None => {
            let names: Vec<_> = reel_kernels::SOURCES.iter().map(|s| s.name).collect();
            eprintln!("error: {name}: no such kernel folder; one of {}", names.join(" "));
            std::process::exit(2);
        }
    }
}
