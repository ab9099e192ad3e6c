"""Small real tokenizers on disk, and chat templates of the shapes that models come with."""

import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "what is the capital of france and who wrote hamlet",
    "paris is the capital, shakespeare wrote it. 0123456789",
]
CONTROL = [
    "<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot|>", "<|head|>", "<|/head|>", "<|user|>",
    "<|assistant|>",
]  # fmt: skip

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set system = none %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set content = m.content %}{% if system and loop.first %}"
    "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{% for m in messages %}{{ bos_token if loop.first }}<|head|>{{ m.role }}<|/head|>\n\n"
    "{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|/head|>\n\n{% endif %}"
)
LLAMA3_ALWAYS_ASKS = LLAMA3.replace("{% if add_generation_prompt %}", "{% if true %}")
ZEPHYR = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
THINKING = CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}")
NO_END = (
    "{% for m in messages %}{{ m.role | capitalize }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)
REWRITES = "{% if messages[-1].role == 'assistant' %}answered {% endif %}" + CHATML


def byte_tokenizer(
    folder: Path,
    template: str | None = CHATML,
    *,
    bos: str | None = "<s>",
    eos: str = "</s>",
    pad: str | None = None,
    around: str = "<s> $A",
    generation_eos: int | list[int] | None = None,
    extra: tuple[str, ...] = (),
    **config: object,
) -> Path:
    """A byte-level BPE: `around` is what encoding adds, `generation_eos` goes into generation_config.json."""
    rules = Tokenizer(models.BPE(unk_token="<unk>"))
    rules.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rules.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[*CONTROL, *extra],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rules.train_from_iterator(CORPUS, trainer)
    special = [(token, rules.token_to_id(token)) for token in ("<s>", "</s>") if token in around]
    rules.post_processor = processors.TemplateProcessing(single=around, special_tokens=special)
    return save(folder, rules, template, generation_eos, bos_token=bos, eos_token=eos, pad_token=pad, **config)


def llama2_tokenizer(folder: Path) -> Path:
    """Of the old Llama shape: a normalizer writes `▁` before each stretch of text, no pre-tokenizer."""
    letters = sorted({letter for text in CORPUS for letter in text if letter != " "} | set("[]/INST<>SY▁"))
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *letters, "▁[", "INST", "▁[/"])}
    merges = [("▁", "["), ("I", "N"), ("S", "T"), ("IN", "ST"), ("▁[", "/")]
    vocabulary |= {"IN": len(vocabulary), "ST": len(vocabulary) + 1}
    rules = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True))
    rules.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rules.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    rules.add_special_tokens(["<unk>", "<s>", "</s>"])
    rules.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    save(
        folder,
        rules,
        LLAMA2,
        bos_token="<s>",
        eos_token="</s>",
        tokenizer_class="LlamaTokenizer",
        legacy=False,
    )
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "eos_token_id": 2}))
    return folder


def save(
    folder: Path,
    rules: Tokenizer,
    template: str | None,
    generation_eos: int | list[int] | None = None,
    **config: object,
) -> Path:
    """The files that a Hugging Face folder has of a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    rules.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast"} | {k: v for k, v in config.items() if v is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    if generation_eos is not None:
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation_eos}))
    return folder
