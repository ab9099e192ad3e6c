"""The models: one decoder for all families, pure functions over a tree of weights.

One axis alphabet for einsums, shapes and sharding:

    B batch          T query position     S key position      D model width
    N query heads    K key/value heads    G queries a key     H head width
    F hidden width   E experts            R latent width      V vocabulary      L layers
    X hidden width of a routed expert     Y hidden width of the shared ones     C experts a token asks
    O segments of a cache                 J key position in one

Latent attention (models/mla.py) has widths of its own: Q latent of the queries, P key without position,
U rotary key, W value, Z key without position and value.

A weight has Hugging Face's order, outputs first: a projection of x[D] to y[F] is `F D`. Import and export
are then reshapes without a transpose, and a small batch multiplies fastest that way on CPU.
"""
