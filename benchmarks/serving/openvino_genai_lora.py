"""Compare greedy tokens of OpenVINO GenAI, with an exported LoRA adapter, with those of the trained model.

Usage: python openvino_genai_lora.py MODEL_FOLDER LORA_DIR EXPECTED.json
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import openvino as ov
import openvino_genai as genai
from openvino import opset13 as op
from openvino.op.util import VariableInfo
from safetensors.numpy import load_file


def constant(value: object, dtype: type = np.float32) -> ov.Node:
    return op.constant(np.array(value, dtype=dtype))


class Llama:
    """The graph of a Llama with a key-value cache, nodes named as OpenVINO's own conversion from PyTorch names them."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = load_file(folder / "model.safetensors")
        self.sinks: list[ov.Node] = []
        self.variables: list[ov.op.util.Variable] = []

    def model(self) -> ov.Model:
        """The whole graph."""
        ids = op.parameter([-1, -1], np.int64, name="input_ids")
        mask = op.parameter([-1, -1], np.int64, name="attention_mask")
        positions = op.parameter([-1, -1], np.int64, name="position_ids")
        beams = op.parameter([-1], np.int32, name="beam_idx")
        for node in (ids, mask, positions, beams):
            node.output(0).set_names({node.friendly_name})
        self.ids, self.beams = ids, beams
        self.cos, self.sin = self.rotary(positions)
        self.mask = self.causal(mask, positions)
        embedding = self.weights["model.embed_tokens.weight"]
        x = op.gather(op.constant(embedding), ids, constant(0, np.int64))
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}"
            x = op.add(x, self.attention(self.norm(x, f"{prefix}.input_layernorm"), f"{prefix}.self_attn"))
            x = op.add(x, self.feed_forward(self.norm(x, f"{prefix}.post_attention_layernorm"), f"{prefix}.mlp"))
        x = self.norm(x, "model.norm")
        logits = op.matmul(x, op.constant(embedding), False, True, name="__module.lm_head/ov_ext::linear/MatMul")
        result = op.result(logits, name="logits")
        logits.output(0).set_names({"logits"})
        return ov.Model([result], self.sinks, [ids, mask, positions, beams], self.variables, "llama")

    def linear(self, x: ov.Node, name: str) -> ov.Node:
        """The linear layer: x W^T."""
        weight = op.constant(self.weights[f"{name}.weight"])
        return op.matmul(x, weight, False, True, name=f"__module.{name}/ov_ext::linear/MatMul")

    def norm(self, x: ov.Node, name: str) -> ov.Node:
        """RMS normalization: x / sqrt(mean x^2 + eps) * w."""
        mean = op.reduce_mean(op.power(x, constant(2.0)), constant([-1], np.int64), True)
        scaled = op.divide(x, op.sqrt(op.add(mean, constant(self.config["rms_norm_eps"]))))
        return op.multiply(scaled, op.constant(self.weights[f"{name}.weight"]))

    def feed_forward(self, x: ov.Node, name: str) -> ov.Node:
        """down(silu(gate x) * up x)."""
        gate = self.linear(x, f"{name}.gate_proj")
        silu = op.multiply(gate, op.sigmoid(gate))
        return self.linear(op.multiply(silu, self.linear(x, f"{name}.up_proj")), f"{name}.down_proj")

    def rotary(self, positions: ov.Node) -> tuple[ov.Node, ov.Node]:
        """Cosines and sines of the positions, (batch, 1, tokens, width)."""
        half = self.config["head_dim"] // 2
        theta = self.config["rope_parameters"]["rope_theta"]
        frequencies = theta ** -(np.arange(half, dtype=np.float32) / half)
        place = op.convert(op.unsqueeze(op.unsqueeze(positions, constant(1, np.int64)), constant(3, np.int64)), "f32")
        angle = op.multiply(place, constant(frequencies.reshape(1, 1, 1, half)))
        angle = op.concat([angle, angle], -1)
        return op.cos(angle), op.sin(angle)

    def rotated(self, x: ov.Node) -> ov.Node:
        """Rotary embedding of (batch, heads, tokens, width)."""
        first, second = op.split(x, constant(-1, np.int64), 2).outputs()
        turned = op.concat([op.negative(second), first], -1)
        return op.add(op.multiply(x, self.cos), op.multiply(turned, self.sin))

    def causal(self, mask: ov.Node, positions: ov.Node) -> ov.Node:
        """0 where a query may look, a large negative number elsewhere: (batch, 1, queries, keys)."""
        length = op.gather(op.shape_of(mask), constant(1, np.int64), constant(0, np.int64))
        keys = op.range(constant(0, np.int64), length, constant(1, np.int64), "i64")
        query = op.unsqueeze(op.unsqueeze(positions, constant(1, np.int64)), constant(3, np.int64))
        seen = op.logical_and(
            op.less_equal(op.reshape(keys, constant([1, 1, 1, -1], np.int64), False), query),
            op.greater(
                op.unsqueeze(op.unsqueeze(mask, constant(1, np.int64)), constant(1, np.int64)), constant(0, np.int64)
            ),
        )
        return op.select(seen, constant(0.0), constant(-1e9))

    def cached(self, x: ov.Node, name: str) -> ov.Node:
        """What earlier calls appended along the tokens, and x behind it."""
        heads, width = self.config["num_key_value_heads"], self.config["head_dim"]
        shape = ov.PartialShape([-1, heads, -1, width])
        info = VariableInfo()
        info.data_shape, info.data_type, info.variable_id = shape, ov.Type.f32, name
        variable = ov.op.util.Variable(info)
        self.variables.append(variable)
        batch = op.gather(op.shape_of(self.ids), constant([0], np.int64), constant(0, np.int64))
        empty = op.broadcast(constant(0.0), op.concat([batch, constant([heads, 0, width], np.int64)], 0))
        past = op.gather(op.read_value(empty, variable), self.beams, constant(0, np.int64))
        whole = op.concat([past, x], 2)
        self.sinks.append(op.assign(whole, variable))
        return whole

    def attention(self, x: ov.Node, name: str) -> ov.Node:
        """Causal attention with grouped queries."""
        heads, groups, width = (self.config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))

        def split(node: ov.Node, count: int) -> ov.Node:
            shaped = op.reshape(node, constant([0, 0, count, width], np.int64), True)
            return op.transpose(shaped, constant([0, 2, 1, 3], np.int64))

        def repeated(node: ov.Node) -> ov.Node:
            spread = op.tile(
                op.unsqueeze(node, constant(2, np.int64)), constant([1, 1, heads // groups, 1, 1], np.int64)
            )
            return op.reshape(spread, constant([0, heads, -1, width], np.int64), True)

        query = self.rotated(split(self.linear(x, f"{name}.q_proj"), heads))
        key = self.rotated(split(self.linear(x, f"{name}.k_proj"), groups))
        value = split(self.linear(x, f"{name}.v_proj"), groups)
        key, value = self.cached(key, f"{name}.key"), self.cached(value, f"{name}.value")
        found = op.scaled_dot_product_attention(query, repeated(key), repeated(value), self.mask)
        merged = op.reshape(
            op.transpose(found, constant([0, 2, 1, 3], np.int64)), constant([0, 0, heads * width], np.int64), True
        )
        return self.linear(merged, f"{name}.o_proj")


def main(folder: Path, adapter: Path, expected: Path) -> int:
    wanted = json.loads(expected.read_text())
    with tempfile.TemporaryDirectory() as place:
        ov.save_model(Llama(folder).model(), Path(place) / "openvino_model.xml", compress_to_fp16=False)
        for name in ("config.json", "generation_config.json"):
            (Path(place) / name).write_bytes((folder / name).read_bytes())
        lora = genai.Adapter(str(adapter / "adapter_model.safetensors"))
        options = {"ATTENTION_BACKEND": "SDPA", "INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        pipeline = genai.LLMPipeline(place, "CPU", adapters=genai.AdapterConfig(lora), **options)
        prompt = ov.Tensor(np.array([wanted["prompt"]], dtype=np.int64))
        found = {}
        for name, active in (("adapted", genai.AdapterConfig(lora)), ("plain", genai.AdapterConfig())):
            settings = genai.GenerationConfig(max_new_tokens=len(wanted[name]), ignore_eos=True, do_sample=False)
            settings.eos_token_id = 2
            settings.adapters = active
            found[name] = list(pipeline.generate(prompt, settings).tokens[0])
    for name, tokens in sorted(found.items()):
        same = sum(one == other for one, other in zip(tokens, wanted[name], strict=False))
        print(f"{name}: {same} of {len(wanted[name])} tokens equal")
        if tokens != wanted[name]:
            print("  wanted", wanted[name][:20])
            print("  found ", tokens[:20])
    return int(found != {name: wanted[name] for name in found})


if __name__ == "__main__":
    sys.exit(main(*(Path(argument) for argument in sys.argv[1:4])))
