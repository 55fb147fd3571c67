"""The 0.5 B decoder of the peer benchmarks: its shape, its weights, and its form for other programs."""
import json
import os
import subprocess
import sys

SHAPE = dict(hidden_size=896, num_hidden_layers=24, max_window_layers=24, num_attention_heads=14, num_key_value_heads=2,
             intermediate_size=4864, vocab_size=151936, tie_word_embeddings=True, torch_dtype="bfloat16",
             rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]})
VISION = dict(depth=8, hidden_size=1280, num_heads=16, intermediate_size=3420, window_size=112, fullatt_block_indexes=[7],
              out_hidden_size=896)


def make_model(reel, folder):
    """Writes a model folder: tokenizer of the preset `tiny`, SHAPE and VISION, normal random weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    subprocess.run([reel, "init", "--preset", "tiny", "--seed", "0", "--out", folder], check=True, stdout=subprocess.DEVNULL)
    path = os.path.join(folder, "config.json")
    config = json.load(open(path))
    config.update(SHAPE)
    config["vision_config"].update(VISION)
    json.dump(config, open(path, "w"), indent=2)
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig.from_pretrained(folder)).named_parameters() if n != "lm_head.weight"}
    torch.manual_seed(0)
    weights = {n: (torch.ones(s) if len(s) == 1 and "bias" not in n else torch.randn(s) * 0.02).bfloat16() for n, s in shapes.items()}
    for f in os.listdir(folder):
        if f.endswith(".safetensors") or f.endswith(".index.json"):
            os.remove(os.path.join(folder, f))
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})


def export_to_openvino(folder, exported):
    """Exports a Qwen2ForCausalLM of the decoder's shape with the folder's tokenizer."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
    plain = folder + "-qwen2"
    own = {k: v for k, v in SHAPE.items() if k not in ("torch_dtype", "rope_scaling")}
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**own)).to(torch.bfloat16).save_pretrained(plain)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=os.path.join(folder, "tokenizer.json"))
    tokenizer.eos_token = tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(plain)
    cli = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", plain, "--task",
           "text-generation-with-past", "--weight-format", "fp16", exported]
    subprocess.run(cli, check=True, stdout=sys.stderr)


def write_gguf(folder, path, is_f16=False):
    """Writes the decoder of a model folder as GGUF: matrices in bf16 or f16, f32 vectors, no tokenizer."""
    import gguf
    import numpy
    config = json.load(open(os.path.join(folder, "config.json"), encoding="utf-8"))
    writer = gguf.GGUFWriter(path + ".part", "qwen2")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if is_f16 else gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config["num_hidden_layers"])
    for name, shape, bits in bf16_tensors(os.path.join(folder, "model.safetensors")):
        if "visual." in name:
            continue
        name = names.get_name(name.replace("language_model.", ""), try_suffixes=(".weight", ".bias"))
        if len(shape) == 1 or is_f16:
            values = (bits.astype(numpy.uint32) << 16).view(numpy.float32).reshape(shape)
            writer.add_tensor(name, values if len(shape) == 1 else values.astype(numpy.float16))
        else:
            rows = bits.reshape(shape).view(numpy.uint8)
            writer.add_tensor(name, rows, raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.rename(path + ".part", path)


def bf16_tensors(path):
    """Name, shape and bits of each tensor of a safetensors file. All must be bf16, a type that numpy lacks."""
    import numpy
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        begin = f.tell()
    data = numpy.memmap(path, dtype=numpy.uint8, mode="r", offset=begin)
    for name, tensor in header.items():
        if name != "__metadata__":
            assert tensor["dtype"] == "BF16", name
            first, last = tensor["data_offsets"]
            yield name, tensor["shape"], data[first:last].view(numpy.uint16)
