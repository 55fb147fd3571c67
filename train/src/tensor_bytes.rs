//! Reads the bytes of a tensor in parts.

use reel_runtime::Tensor;

/// Iterates over the bytes of a tensor without padding. Each part has about 1 MiB (at least one row), so that a large
/// tensor is never copied as a whole.
pub fn tensor_byte_parts(t: &Tensor) -> impl Iterator<Item = reel_runtime::Result<Vec<u8>>> + '_ {
    let total = t.unpadded_shape().first().copied().unwrap_or(0);
    let rows = ((1 << 20) * total / t.unpadded_bytes().max(1)).max(1);
    // `Tensor::rows` fails only for ranges outside of the tensor, which do not occur here.
    (0..total)
        .step_by(rows)
        .filter_map(move |start| t.rows(start, rows.min(total - start)).ok())
        .map(|part| part.read_unpadded_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensor_parts_are_its_bytes() {
        let device = reel_device::Device::cpu(1);
        for shape in [&[3][..], &[1, 400_000], &[70_000, 13], &[0, 4]] {
            let data: Vec<i32> = (0..shape.iter().product::<usize>() as i32).collect();
            let t = Tensor::from_i32(&device, shape, &data).unwrap();
            let all: Vec<Vec<u8>> = tensor_byte_parts(&t).collect::<Result<_, _>>().unwrap();
            assert_eq!(all.concat(), t.read_bytes().unwrap());
        }
        let padded =
            Tensor::empty(&device, &[700, 2064], reel_device::DType::I32, reel_device::MemoryCategory::Weights);
        let padded = padded.unwrap().with_unpadded_shape(&[650, 2060]).unwrap();
        let data: Vec<i32> = (0..650 * 2060).collect();
        padded.write_unpadded(&data).unwrap();
        let all: Vec<Vec<u8>> = tensor_byte_parts(&padded).collect::<Result<_, _>>().unwrap();
        assert!(all.len() > 4 && all.concat() == bytemuck::cast_slice::<i32, u8>(&data));
    }
}
