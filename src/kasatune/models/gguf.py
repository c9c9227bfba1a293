"""Load base models from GGUF files through transformers: dequantized, as a plain float model."""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import transformers
from transformers import PreTrainedModel, modeling_gguf_pytorch_utils

from kasatune.errors import MissingExtraError, ModelError
from kasatune.io.model_location import ModelLocation


def weight_options(location: ModelLocation, quantization: str = "none") -> dict[str, Any]:
    """Arguments of a model's `from_pretrained` that load the weights of a GGUF file dequantized; {} for other models.

    Raises:
        MissingExtraError: the gguf package is not installed.
        ModelError: the recipe asks for another quantization.
    """
    if location.gguf_file is None:
        return {"use_safetensors": True}
    require_reader()
    if quantization != "none":
        raise ModelError(
            f"model.quantization: {quantization!r} received; the weights of a GGUF file are dequantized when they are "
            "loaded and cannot be quantized again; use none"
        )
    config = getattr(transformers, "GgufConfig", None)
    return location.options | ({} if config is None else {"quantization_config": config(dequantize=True)})


def require_reader() -> None:
    """Check that the package that reads GGUF files is installed.

    Raises:
        MissingExtraError: it is not.
    """
    if importlib.util.find_spec("gguf") is None:
        raise MissingExtraError("a base model in a GGUF file", "gguf", ["gguf"])


def make_plain(model: PreTrainedModel) -> None:
    """Remove the quantizer that transformers leaves on a dequantized model, so that it can be trained and saved.

    A model that is quantized in another way is not changed.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None and quantizer.quantization_config.quant_method == "gguf":
        quantizer.remove_quantization_config(model)


@contextmanager
def fast_reading(location: ModelLocation) -> Generator[None]:
    """Make transformers read the header of a GGUF file once and quickly; no change for other models.

    transformers reads the header for the configuration, the tokenizer and the weights, the reader of the gguf package
    takes seconds for a vocabulary, and the table of tensor names is built again for every module of the model. The
    progress bar of transformers is left out.
    """
    if location.gguf_file is None:
        yield
        return
    require_reader()
    import gguf

    package: Any = gguf
    loader: Any = modeling_gguf_pytorch_utils
    reader, name_map, bar = package.GGUFReader, package.get_tensor_name_map, loader.tqdm
    if not isinstance(reader, type):  # within another call of this function
        yield
        return
    package.GGUFReader = cache(_fast_reader())
    package.get_tensor_name_map = cache(name_map)
    loader.tqdm = _no_bar
    try:
        yield
    finally:
        package.GGUFReader, package.get_tensor_name_map, loader.tqdm = reader, name_map, bar


def _no_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items


def _fast_reader() -> type[Any]:
    """A reader like that of the gguf package, with arrays read at once instead of element by element."""
    import gguf

    types = gguf.GGUFValueType

    class FastReader(gguf.GGUFReader):
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, list[Any], list[int], list[Any]]:
            if raw_type != types.ARRAY or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            element = types(int(self._get(orig_offs, np.uint32)[0]))
            count = int(self._get(orig_offs + 4, np.uint64)[0])
            start = orig_offs + 12  # behind the type of the elements (4 bytes) and their number (8 bytes)
            if element == types.STRING:
                data: Any = self.data
                size, parts = _strings(memoryview(data), start, count)
            elif element in self.gguf_scalar_to_np:
                values = np.asarray(self._get(start, self.gguf_scalar_to_np[element], count))
                size, parts = values.nbytes, [values[index : index + 1] for index in range(len(values))]
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            kinds = [types.ARRAY, element] if count else [types.ARRAY]
            return size + start - orig_offs, parts, list(range(len(parts))), kinds

    return FastReader


def _strings(buffer: memoryview, start: int, count: int) -> tuple[int, list[Any]]:
    """The bytes of consecutive strings, each behind its length in 8 bytes, and the size of all of them."""
    parts: list[Any] = []
    offset = start
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", buffer, offset)
        parts.append(np.frombuffer(buffer, np.uint8, length, offset + 8))
        offset += 8 + length
    return offset - start, parts
