"""Text on the way in and out: tokenizer, chat template, prompts. The engine sees tokens; text stays here."""
