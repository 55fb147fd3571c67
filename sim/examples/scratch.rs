use reel_sim::{exec, memory::Memory, program::Program};
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let text = std::fs::read_to_string(&args[1]).unwrap();
    let program = Program::parse(&text).unwrap();
    let name = args.get(2).cloned().unwrap_or_else(|| program.kernels()[0].to_string());
    let n: u32 = args.get(3).map_or(1024, |s| s.parse().unwrap());
    let blocks: u32 = args.get(4).map_or(4, |s| s.parse().unwrap());
    let threads: u32 = args.get(5).map_or(256, |s| s.parse().unwrap());
    let smem: u32 = args.get(6).map_or(0, |s| s.parse().unwrap());
    let kernel = program.kernel(&name).unwrap();
    for seed in 0..args.get(7).map_or(1, |s| s.parse().unwrap()) {
        let mut memory = Memory::new();
        let x: Vec<u8> = (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let a = memory.alloc(x.clone());
        let b = memory.alloc(x);
        let mut params = Vec::new();
        params.extend(a.to_le_bytes());
        params.extend(b.to_le_bytes());
        params.extend(n.to_le_bytes());
        params.resize(kernel.param_bytes as usize, 0);
        let launch = exec::Launch {
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            cluster: [1, 1, 1],
            dynamic_shared: smem,
            params,
        };
        let options = exec::Options { seed, ..Default::default() };
        let t = std::time::Instant::now();
        let out = exec::run(&program, &kernel, &launch, &mut memory, &options).unwrap();
        let s = t.elapsed().as_secs_f64();
        let total = out.counters.total();
        println!(
            "{:.3} s, {} thread instructions, {:.1} M/s, {:.2} GFLOP/s",
            s,
            total.threads,
            total.threads as f64 / s / 1e6,
            total.matrix_flops as f64 / s / 1e9
        );
        for f in out.findings.into_list() {
            println!("{:?}", f);
        }
        for f in out.notes {
            println!("note {f}");
        }
        print!("{}", out.printed);
        let r: Vec<f32> =
            memory.bytes(a).unwrap().chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        println!("{:?} .. {:?}", &r[..8], &r[r.len() - 4..]);
    }
}
