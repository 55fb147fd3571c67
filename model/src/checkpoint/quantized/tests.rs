//! Values against those of each format's own tools (tests/golden/quant), and one folder for each kind of damage.

use std::path::PathBuf;

use half::bf16;
use proptest::prelude::*;
use reel_input::tensor_file::read_header;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::*;

const MODULE: &str = "model.layers.0.self_attn.k_proj";

/// The stored tensors of a module, by the end of the name: dtype, shape and bytes.
type Parts = BTreeMap<String, (String, Vec<usize>, Vec<u8>)>;

/// A quantised weight with its config.
#[derive(Clone)]
struct Case {
    name: String,
    config: Value,
    shape: [usize; 2],
    parts: Parts,
}

fn goldens() -> (PathBuf, Value) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/quant");
    let text = std::fs::read_to_string(folder.join("cases.json")).unwrap();
    (folder, serde_json::from_str(&text).unwrap())
}

fn cases() -> Vec<Case> {
    let (folder, cases) = goldens();
    let case = |(name, case): (&String, &Value)| {
        let path = folder.join(format!("{name}.safetensors"));
        let file = std::fs::read(&path).unwrap();
        let part = |tensor: reel_input::tensor_file::HeaderTensor| {
            let end = tensor.name.strip_prefix(MODULE).unwrap()[1..].to_string();
            (end, (tensor.dtype, tensor.shape, file[tensor.begin..tensor.end].to_vec()))
        };
        Case {
            name: name.clone(),
            config: case["quantization_config"].clone(),
            shape: serde_json::from_value(case["shape"].clone()).unwrap(),
            parts: read_header(&path, &file).unwrap().into_iter().map(part).collect(),
        }
    };
    cases.as_object().unwrap().iter().map(case).collect()
}

impl Case {
    fn of(config: Value, shape: [usize; 2], parts: &[(&str, &str, &[usize], Vec<u8>)]) -> Case {
        let part = |(end, dtype, shape, bytes): &(&str, &str, &[usize], Vec<u8>)| {
            (end.to_string(), (dtype.to_string(), shape.to_vec(), bytes.clone()))
        };
        Case { name: "generated".into(), config, shape, parts: parts.iter().map(part).collect() }
    }

    /// Writes the folder with the weight as that of `module`, and opens it.
    fn open_as(&self, module: &str) -> Result<Checkpoint> {
        let folder = tempfile::tempdir().unwrap();
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (end, (dtype, shape, bytes)) in &self.parts {
            let offsets = [data.len(), data.len() + bytes.len()];
            header.insert(format!("{module}.{end}"), json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
            data.extend(bytes);
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let file = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
        let config = json!({"quantization_config": self.config}).to_string();
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        Checkpoint::open(folder.path())
    }

    fn check_as(&self, module: &str) -> Result<Checkpoint> {
        let checkpoint = self.open_as(module)?;
        checkpoint.check_quantized(&[(format!("{module}.weight"), self.shape.to_vec())])?;
        Ok(checkpoint)
    }

    /// The values of the rows `rows`.
    fn values(&self, rows: Range<usize>) -> Result<Vec<f32>, usize> {
        let checkpoint = self.check_as(MODULE).unwrap_or_else(|e| panic!("{}: {e}", self.name));
        let weight = checkpoint.quantized(&format!("{MODULE}.weight"), self.shape).unwrap().unwrap();
        let mut values = vec![f32::NAN; rows.len() * self.shape[1]];
        weight.read_rows(rows, &mut values).map(|()| values)
    }

    /// Asserts that the changed weight is refused in one line with file, tensor and `what`.
    fn assert_refused(&self, change: impl FnOnce(&mut Case), end: &str, what: &str) {
        let mut changed = self.clone();
        change(&mut changed);
        let error = match changed.check_as(MODULE) {
            Ok(_) => panic!("{}: {end}: {what}: accepted", self.name),
            Err(e) => e.to_string(),
        };
        let named = format!("{MODULE}.{end}: ");
        assert!(error.contains(&named) && error.contains(what) && !error.contains('\n'), "{}: {error}", self.name);
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn values_have_the_bits_of_each_formats_tools() {
    let (_, expected) = goldens();
    for case in cases() {
        let values = case.values(0..case.shape[0]).unwrap();
        let rounded: Vec<bf16> = values.iter().map(|&x| bf16::from_f32(x)).collect();
        let hashes = [sha256(bytemuck::cast_slice(&values)), sha256(bytemuck::cast_slice(&rounded))];
        let wanted = ["f32", "bf16"].map(|dtype| expected[&case.name][dtype].as_str().unwrap());
        assert_eq!(hashes, wanted, "{}", case.name);
        assert_eq!(case.values(9..42).unwrap(), values[9 * case.shape[1]..42 * case.shape[1]], "{}", case.name);
    }
}

#[test]
fn every_part_is_required_with_its_shape_and_dtype() {
    for case in cases() {
        for (end, (dtype, shape, _)) in &case.parts {
            if end == "input_scale" {
                continue;
            }
            let is_main = ["qweight", "weight", "weight_packed"].contains(&&end[..]);
            if is_main {
                let other = case.parts.keys().find(|other| *other != end).unwrap();
                case.assert_refused(|c| drop(c.parts.remove(end)), other, "beside it");
            } else if end != "g_idx" {
                case.assert_refused(|c| drop(c.parts.remove(end)), end, "is missing");
            }
            let is_state = end.contains("quant_state");
            if !is_state {
                let other: Vec<usize> = [&shape[..], &[1]].concat();
                case.assert_refused(|c| c.parts.get_mut(end).unwrap().1 = other, end, "has shape");
            }
            let other = match &dtype[..] {
                "I32" | "F32" => "U32",
                "F16" | "BF16" => "I16",
                "I64" => "U64",
                "U8" | "F8_E4M3" => "F8_E5M2",
                "I8" => "U8",
                other => panic!("{}: {end} has dtype {other}", case.name),
            };
            let what = if is_state { "is missing" } else { "is stored as" };
            case.assert_refused(|c| c.parts.get_mut(end).unwrap().0 = other.into(), end, what);
        }
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    for case in cases() {
        for (end, (dtype, _, bytes)) in case.parts.iter().filter(|(end, _)| *end != "input_scale") {
            let nan: &[u8] = match &dtype[..] {
                "F16" => &[0, 0x7e],
                "BF16" => &[0xc0, 0x7f],
                "F32" => &[0, 0, 0xc0, 0x7f],
                _ => continue,
            };
            let last = bytes.len() - nan.len();
            case.assert_refused(
                |c| c.parts.get_mut(end).unwrap().2[last..].copy_from_slice(nan),
                end,
                "is NaN, infinite",
            );
        }
    }
    let mut fp8 = cases().into_iter().find(|case| case.name == "qwen-fp8").unwrap();
    fp8.parts.get_mut("weight").unwrap().2[3 * 256 + 5] = 0x7f;
    assert_eq!(fp8.values(1..9), Err(3), "a code that is NaN");
}

#[test]
fn impossible_values_are_refused() {
    let find = |name: &str| cases().into_iter().find(|case| case.name == name).unwrap();
    let set = |end: &'static str, bytes: Vec<u8>| {
        move |c: &mut Case| c.parts.get_mut(end).unwrap().2.splice(..bytes.len(), bytes).for_each(drop)
    };
    let act = find("gptq-v1-4bit-g32-asym-act");
    act.assert_refused(set("g_idx", vec![8, 0, 0, 0]), "g_idx", "has 8 at [0], but there are 8 groups");
    act.assert_refused(set("g_idx", vec![255; 4]), "g_idx", "has -1 at [0]");
    act.assert_refused(set("qzeros", vec![0x0f]), "qzeros", "has the zero point 15");
    act.assert_refused(
        |c| c.config["group_size"] = 24.into(),
        "scales",
        "groups of 24 inputs, which do not divide 256",
    );
    find("ct-int4-g128").assert_refused(set("weight_shape", vec![129]), "weight_shape", "is [129, 256], but");
    let nf4 = find("bnb-nf4-double");
    const STATE: &str = "weight.quant_state.bitsandbytes__nf4";
    let state = |change: &dyn Fn(&mut Value)| {
        let mut state: Value = serde_json::from_slice(&nf4.parts[STATE].2).unwrap();
        change(&mut state);
        let bytes = state.to_string().into_bytes();
        move |c: &mut Case| drop(c.parts.insert(STATE.into(), ("U8".into(), vec![bytes.len()], bytes)))
    };
    for (key, value, what) in [
        ("blocksize", json!(0), "has no valid `blocksize`"),
        ("nested_blocksize", Value::Null, "has no valid `nested_blocksize`"),
        ("nested_offset", json!("0"), "has no finite `nested_offset`"),
        ("shape", json!([256, 128]), "has the shape [256,128], but"),
    ] {
        nf4.assert_refused(state(&|state| state[key] = value.clone()), STATE, what);
    }
    nf4.assert_refused(set(STATE, b"]".to_vec()), STATE, "is not JSON");
}

#[test]
fn other_modules_and_contradictions_are_refused() {
    let error = |case: &Case, module: &str| case.check_as(module).unwrap_err().to_string();
    for case in cases() {
        for module in ["visual.blocks.0.attn.qkv", "lm_head"] {
            let error = error(&case, module);
            let named = error.contains(&format!("{module}.")) && error.contains("model.safetensors");
            assert!(named && error.contains("only the linear layers of the decoder may be"), "{}: {error}", case.name);
        }
        let mut listed = case.clone();
        let method = case.config["quant_method"].as_str().unwrap();
        let key = match method {
            "compressed-tensors" => "ignore",
            "bitsandbytes" => "llm_int8_skip_modules",
            _ => "modules_to_not_convert",
        };
        let name = if method == "compressed-tensors" { "re:.*k_proj" } else { "self_attn.k_proj" };
        listed.config[key] = json!([name]);
        let error = error(&listed, MODULE);
        assert!(error.contains(&format!("quantization_config.{key} lists this module")), "{}: {error}", case.name);
        if !case.parts.contains_key("weight") {
            let plain = ("F16".to_string(), case.shape.to_vec(), vec![0; 2 * case.shape[0] * case.shape[1]]);
            let end = case.parts.keys().next().unwrap();
            case.assert_refused(|c| drop(c.parts.insert("weight".into(), plain)), end, "also have the weight");
        }
    }
}

proptest! {
    /// Zero points of compressed-tensors, which no golden has, and shapes that fill no whole words or blocks.
    #[test]
    fn any_shape_has_the_values_of_its_codes(
        out in 1usize..20, inner in 1usize..70, block in (1usize..9, 1usize..9), asymmetric: bool, eight: bool, seed: u64,
    ) {
        let mut state = seed;
        let mut random = |bits: u32| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> (64 - bits)) as u8
        };
        let bits = if eight { 8 } else { 4 };
        let codes: Vec<u8> = (0..out * inner).map(|_| random(bits)).collect();
        let weights = json!({"num_bits": bits, "type": "int", "symmetric": !asymmetric, "strategy": "channel"});
        let config = |format: &str, weights: Value| json!({"quant_method": "compressed-tensors", "format": format,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}});
        let scales: Vec<f32> = (0..out).map(|_| f32::from(random(8)) / 64.0).collect();
        let scale = ("weight_scale", "F32", &[out, 1][..], bytemuck::cast_slice(&scales).to_vec());
        let zeros: Vec<u8> = (0..out).map(|_| random(bits)).collect();
        let pack = |codes: &[u8]| -> Vec<u8> {
            let words = codes.chunks((32 / bits) as usize);
            let word = |(i, &code): (usize, &u8)| u32::from(code) << (i as u32 * bits);
            words.flat_map(|codes| codes.iter().enumerate().map(word).sum::<u32>().to_le_bytes()).collect()
        };
        let packed: Vec<u8> = codes.chunks(inner).flat_map(pack).collect();
        let shape: Vec<u8> = [out, inner].iter().flat_map(|&size| (size as i64).to_le_bytes()).collect();
        let words = [out, (inner * bits as usize).div_ceil(32)];
        let zero_words = [(out * bits as usize).div_ceil(32), 1];
        let mut parts = vec![
            ("weight_packed", "I32", &words[..], packed), ("weight_shape", "I64", &[2], shape), scale.clone(),
        ];
        if asymmetric {
            parts.push(("weight_zero_point", "I32", &zero_words[..], pack(&zeros)));
        }
        let case = Case::of(config("pack-quantized", weights.clone()), [out, inner], &parts);
        let middle = 1u8 << (bits - 1);
        let value = |i: usize| {
            let zero = if asymmetric { zeros[i / inner] } else { middle };
            (f32::from(codes[i]) - f32::from(zero)) * scales[i / inner]
        };
        let wanted: Vec<f32> = (0..out * inner).map(value).collect();
        prop_assert_eq!(case.values(0..out).unwrap(), wanted);

        // i8.
        let bytes: Vec<u8> = (0..out * inner).map(|_| random(8)).collect();
        let points: Vec<u8> = (0..out).map(|_| random(8)).collect();
        let of_8_bits = json!({"num_bits": 8, "type": "int", "symmetric": !asymmetric, "strategy": "channel"});
        let (whole, column) = ([out, inner], [out, 1]);
        let mut parts = vec![("weight", "I8", &whole[..], bytes.clone()), scale];
        if asymmetric {
            parts.push(("weight_zero_point", "I8", &column[..], points.clone()));
        }
        let case = Case::of(config("int-quantized", of_8_bits), [out, inner], &parts);
        let value = |i: usize| {
            let zero = if asymmetric { f32::from(points[i / inner] as i8) } else { 0.0 };
            (f32::from(bytes[i] as i8) - zero) * scales[i / inner]
        };
        let wanted: Vec<f32> = (0..out * inner).map(value).collect();
        prop_assert_eq!(case.values(0..out).unwrap(), wanted);

        // Blocks of 8-bit floats that do not divide the shape; the codes are powers of two, or 0.
        let (rows, columns) = block;
        let codes: Vec<u8> = codes.iter().map(|code| (code & 0x87) << 3 & 0xf8).collect();
        let grid = [out.div_ceil(rows), inner.div_ceil(columns)];
        let scales: Vec<f32> = (0..grid[0] * grid[1]).map(|_| f32::from(random(8)) / 64.0).collect();
        let parts = [
            ("weight", "F8_E4M3", &[out, inner][..], codes.clone()),
            ("weight_scale_inv", "F32", &grid[..], bytemuck::cast_slice(&scales).to_vec()),
        ];
        let config = json!({"quant_method": "fp8", "weight_block_size": [rows, columns]});
        let value = |i: usize| {
            let exponent = i32::from(codes[i] >> 3 & 15);
            let size = if exponent == 0 { 0.0 } else { 2f32.powi(exponent - 7) };
            let signed = if codes[i] & 0x80 != 0 { -size } else { size };
            signed * scales[i / inner / rows * grid[1] + i % inner / columns]
        };
        let wanted: Vec<f32> = (0..out * inner).map(value).collect();
        prop_assert_eq!(Case::of(config, [out, inner], &parts).values(0..out).unwrap(), wanted);
    }
}
