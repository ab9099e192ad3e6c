"""What a model is compared with."""


def reference_of(wildcards):
    """The logits that a model is compared with: a file beside its weights, or one made by transformers."""
    beside = Path(source_of(wildcards), "reference.npz")
    return str(beside) if beside.is_file() else f"{RECIPE.results}/models/{wildcards.model}/reference.npz"


def parity_files(wildcards):
    """A report for each model that has a reference or can be given one; the others are named."""
    wanted = []
    for model, name in MODELS.items():
        folder = RECIPE.models[name].local
        if model in DERIVED:
            print(f"parity: {name} is left out, it is made of {RECIPE.models[name].derive.parent}", file=sys.stderr)
        elif folder and is_params(folder):
            print(f"parity: {name} is left out, it is a params folder and no checkpoint", file=sys.stderr)
        elif find_spec("torch") or (folder and (folder / "reference.npz").is_file()):
            wanted.append(f"{RECIPE.results}/models/{model}/parity.json")
        else:
            print(
                f"parity: {name} is left out, it has no reference.npz beside its weights, and torch is not installed",
                file=sys.stderr,
            )
    return wanted
