"""The models: one decoder for all families, pure functions over a tree of weights.

One axis alphabet for einsums, shapes and sharding:

    B batch          T query position     S key position      D model width
    N query heads    K key/value heads    G queries a key     H head width
    F hidden width   E experts            R latent width      V vocabulary      L layers

A weight has Hugging Face's order, outputs first: a projection of x[D] to y[F] is `F D`. Import and export
are then reshapes without a transpose, and a small batch multiplies fastest that way on CPU.
"""
