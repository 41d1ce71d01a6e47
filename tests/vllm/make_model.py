"""Writes a two-layer Llama with random weights, a byte-level tokenizer and a chat template: vLLM loads it in a second.

Run by `tests/vllm/run.sh` in vLLM's own environment, which has torch and transformers.
"""

import json
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
ROLES = ("system", "user", "assistant", "tool")


def main() -> None:
    """Writes into the folder named on the command line."""
    folder = Path(sys.argv[1])
    special = ["<|end|>", *(f"<|{role}|>" for role in ROLES)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    wrapped.chat_template = TEMPLATE

    torch.manual_seed(20261127)
    config = LlamaConfig(
        vocab_size=len(alphabet) + len(special),
        # vLLM's attention on the CPU knows heads of 64 and wider.
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        eos_token_id=wrapped.eos_token_id,
        bos_token_id=wrapped.eos_token_id,
        pad_token_id=wrapped.eos_token_id,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(folder, safe_serialization=True)
    wrapped.save_pretrained(folder)
    print(json.dumps({"vocabulary": config.vocab_size, "folder": str(folder)}))


if __name__ == "__main__":
    main()
