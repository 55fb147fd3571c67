use super::*;
use crate::launch::Params;

crate::params! {
    /// Parameters of the kernel `twice_f32` below.
    struct TwiceParams {
        /// f32 `[n]`
        x: crate::Addr,
        /// Elements.
        n: u32,
        /// 0
        reserved: u32,
    }
}

const SOURCE: Source = Source {
    name: "twice",
    sm80: r#"// x = 2 x
extern "C" __global__ void __launch_bounds__(128) twice_f32(const __grid_constant__ TwiceParams p) {
    __shared__ float s[128];
    unsigned int i = blockIdx.x * 128 + threadIdx.x;
    s[threadIdx.x] = i < p.n ? ((const float*)p.x)[i] : 0.f;
    __syncthreads();
    if (i < p.n) ((float*)p.x)[i] = s[threadIdx.x ^ 1] + s[threadIdx.x];
}
"#,
    shared_headers: &[],
    headers: &[],
    header_owners: &[],
    params: &[<TwiceParams as Params>::c_declaration],
};

#[test]
fn a_source_becomes_ptx_with_its_own_lines() {
    let Some(()) = skip_without_nvrtc() else { return };
    for (sm, target) in [("sm_80", ".target sm_80"), ("sm_90a", ".target sm_90a")] {
        let text = compile_to_ptx(&SOURCE, sm).unwrap();
        assert!(text.contains(".entry twice_f32(") && text.contains(target), "{text}");
        assert!(text.contains(".file\t1 \"twice/sm80.cu\""), "{text}");
        assert!(text.contains(".loc\t1 5 "), "line 5 is the first load");
    }
}

#[test]
fn a_cubin_comes_with_its_resources() {
    let Some(()) = skip_without_nvrtc() else { return };
    let cubin = compile_to_cubin(&SOURCE, "sm_80").unwrap();
    assert!(cubin.image.starts_with(b"\x7fELF"));
    let f = cubin.report.resources_of_function("twice_f32").expect("the kernel's resources");
    assert!(f.entry && f.registers > 0 && f.shared == 512 && f.spill_stores == 0, "{f:?}");
    assert_eq!(cubin.report.warnings, [""; 0]);
}

/// For a small kernel, the program ptxas reports the same resources as NVRTC.
#[test]
fn ptxas_and_nvrtc_give_the_same_report() {
    let Some(()) = skip_without_nvrtc() else { return };
    let compiler = compiler().unwrap();
    let Some(ptxas) = &compiler.ptxas else {
        println!("skipped: ptxas_and_nvrtc_give_the_same_report: no ptxas beside NVRTC");
        return;
    };
    for sm in ARCHITECTURES {
        let ptx = compile_to_ptx(&SOURCE, BASE_ARCHITECTURE).unwrap();
        let assembled = compiler.assemble(ptxas, &ptxas_unit(&SOURCE, sm, ptx).unwrap()).unwrap();
        let whole = compiler.build(&cubin_unit(&SOURCE, sm).unwrap()).unwrap();
        assert_eq!(PtxasReport::from_log(&assembled.log), PtxasReport::from_log(&whole.log), "{sm}");
        assert!(assembled.cubin.starts_with(b"\x7fELF"));
        assert_eq!(assembled.ptx.replace("sm_80", sm), whole.ptx, "{sm}");
    }
    let unit = ptxas_unit(&SOURCE, "sm_80", "no PTX".into()).unwrap();
    let e = compiler.assemble(ptxas, &unit).unwrap_err();
    assert!(
        matches!(e, CompileError::Compiler(compile::CompileError::Refused { .. })) && !e.to_string().contains('\n'),
        "{e}"
    );
}

#[test]
fn the_library_has_the_major_version_of_its_name() {
    let Some(()) = skip_without_nvrtc() else { return };
    let library = Toolkit::from_environment().nvrtc().unwrap();
    assert_eq!(Some(nvrtc_version().unwrap().0), toolkit::major_of_library(&library));
}

/// For a driver that is older than NVRTC, ptxas 12 or the driver compiles PTX of an ISA that the driver knows.
#[test]
fn older_drivers_get_code_that_they_load() {
    use driver_code::{compile_for_driver, driver_reads_cubin, isa_of_ptx, newest_isa_of_driver};
    let Some(()) = skip_without_nvrtc() else { return };
    let nvrtc_major = nvrtc_version().unwrap().0;
    let older_ptxas = Toolkit::from_environment().ptxas_of_major(12).is_some();
    for (sm, driver) in [("sm_80", 12_000), ("sm_90a", 12_000), ("sm_90a", 12_040), ("sm_80", 13_000)] {
        let code = match compile_for_driver(&SOURCE, sm, driver) {
            Err(e) if !older_ptxas && nvrtc_major > 12 && driver == 12_000 => {
                assert!(matches!(e, CompileError::NoOlderPtxas(12_000)), "{e}");
                assert!(e.to_string().starts_with("ptxas of CUDA 12 not found"), "{e}");
                continue;
            }
            code => code.unwrap(),
        };
        assert_eq!(code.cubin.is_empty(), nvrtc_major > driver / 1000 && !older_ptxas, "{sm} {driver}");
        assert!(code.cubin.is_empty() || driver_reads_cubin(driver, &code.cubin), "{sm} {driver}");
        let isa = isa_of_ptx(&code.ptx).unwrap();
        assert!(!code.cubin.is_empty() || isa <= newest_isa_of_driver(driver), "{sm} {driver}");
    }
    if !older_ptxas {
        println!("skipped: machine code for CUDA 12: no ptxas of CUDA 12; ./x setup fetches it");
    }
}

#[test]
fn an_error_is_one_line_with_its_place() {
    let Some(()) = skip_without_nvrtc() else { return };
    let broken = Source { sm80: "\n\nextern \"C\" __global__ void k() {\n  y = 1;\n  z = 2;\n}\n", ..SOURCE };
    let e = compile_to_ptx(&broken, "sm_80").unwrap_err();
    assert_eq!(e.to_string(), "twice/sm80.cu:4: identifier \"y\" is undefined");
    let CompileError::Compiler(e) = e else { panic!("{e}") };
    assert!(e.compiler_log().contains("\"z\""));
    let e = compile_to_ptx(&Source { sm80: "#include \"no.h\"\n", ..SOURCE }, "sm_80").unwrap_err().to_string();
    assert!(e.starts_with("twice/sm80.cu:1: ") && e.contains("no.h"), "{e}");
    let e = compile_to_ptx(&Source { sm80: "a\0b", ..SOURCE }, "sm_80").unwrap_err().to_string();
    assert!(e.contains("NUL"), "{e}");
    let e = compile_to_ptx(&SOURCE, "sm_35").unwrap_err().to_string();
    assert!(e.contains("gpu-architecture"), "{e}");
    for sm in ["80", "sm_", "sm_80x", "sm_9000", "sm_aa", "sm_80 -I/"] {
        assert!(
            matches!(compile_to_ptx(&SOURCE, sm), Err(CompileError::Compiler(compile::CompileError::Architecture(_)))),
            "{sm}"
        );
    }
}

#[test]
fn headers_go_by_name_and_only_where_used() {
    let all = [("cuh/a.cuh", "#include \"cuh/b.cuh\""), ("cuh/b.cuh", ""), ("cuh/c.cuh", "#include \"cuh/a.cuh\"")];
    let names = |text| headers_of(text, &all).into_iter().map(|(n, _)| n).collect::<Vec<_>>();
    assert_eq!(names("#include \"cuh/a.cuh\""), ["cuh/a.cuh", "cuh/b.cuh"]);
    assert_eq!(names("#include \"cuh/b.cuh\""), ["cuh/b.cuh"]);
    assert_eq!(names("int x;"), [""; 0]);
    assert_eq!(names("#include \"cuh/c.cuh\"").len(), 3);
}

#[test]
fn a_unit_is_compiled_once_and_read_without_nvrtc() {
    let Some(()) = skip_without_nvrtc() else { return };
    let library = Toolkit::from_environment().nvrtc().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let new = || Compiler::new(&library, None, Some(dir.path().to_path_buf()));
    let unit = unit_of(&SOURCE, "compute_80", &[]);
    // Several threads that compile one unit at once leave one complete entry.
    let texts: Vec<String> = std::thread::scope(|s| {
        let threads: Vec<_> = (0..4).map(|_| s.spawn(|| new().build(&unit).unwrap().ptx)).collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert!(texts.iter().all(|t| *t == texts[0]));
    let entries = || std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(entries().len(), 1);
    let again = new();
    assert_eq!(again.build(&unit).unwrap().ptx, texts[0]);
    assert!(again.nvrtc.get().is_none(), "NVRTC was opened although the cache has the entry");
    std::fs::write(&entries()[0], "damaged").unwrap();
    assert_eq!(again.build(&unit).unwrap().ptx, texts[0]);
    assert!(again.nvrtc.get().is_some());
    assert!(std::fs::metadata(&entries()[0]).unwrap().len() > 100, "the damaged entry was not replaced");
}

#[test]
fn a_library_that_is_none_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "no library").unwrap();
    let e = Compiler::new(file.path(), None, None).build(&unit_of(&SOURCE, "compute_80", &[])).unwrap_err();
    assert!(
        matches!(e, CompileError::Compiler(compile::CompileError::Unusable { .. })) && !e.to_string().contains('\n'),
        "{e}"
    );
}

#[test]
fn files_of_the_line_table_are_relative() {
    let here = std::env::current_dir().unwrap().display().to_string();
    let text = format!("\t.file\t1 \"{here}/k/sm80.cu\"\n\tmov \"{here}/x\";\n\t.file\t2 \"/usr/x.h\"\n");
    let expected = format!("\t.file\t1 \"k/sm80.cu\"\n\tmov \"{here}/x\";\n\t.file\t2 \"/usr/x.h\"\n");
    assert_eq!(with_relative_files(&text), expected);
}
