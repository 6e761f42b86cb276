"""The specification: what every kernel computes, in plain float64 numpy, for reading and for tests.

Shapes: X (n, d) rows, D (m, d) unit-norm atoms, b (d,) bias, Z (n, m) dense codes.
"""

import numpy as np

DONE = 1e-5  # a pursuit's round adds nothing once no selected |correlation| exceeds this share of ‖x − b‖
PIVOT = 1e-4  # selected atoms are dependent when a Cholesky pivot of their Gram matrix is below this
RIDGE = 1e-5  # added to the diagonal of dependent systems, and only of those


def select(scores, k):
    """Columns of the k largest entries of each row, ascending; among equal entries the lower column wins."""
    return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :k], axis=1)


def encode_topk(X, encoder, encoder_bias, b, k):
    """ReLU(TopK_k((x − b)·Wᵀ + c)); encoder W (m, d), encoder_bias c (m,)."""
    scores = (X - b) @ encoder.T + encoder_bias
    Z = np.zeros_like(scores)
    chosen = select(scores, k)
    np.put_along_axis(Z, chosen, np.take_along_axis(scores, chosen, axis=1), axis=1)
    return np.maximum(Z, 0)


def encode_threshold(X, encoder, encoder_bias, b, threshold):
    """Scores (x − b)·Wᵀ + c where they are above the threshold (m,), else 0."""
    scores = (X - b) @ encoder.T + encoder_bias
    return np.where(scores > threshold, scores, 0)


def decode(Z, D, b):
    """z·D + b."""
    return Z @ D + b


def decoder_gradient(Z, D, b, X):
    """Gradients of Σ‖z·D + b − x‖² in D (m, d), in b (d,), and in Z at its active places (n, m)."""
    error = 2 * (decode(Z, D, b) - X)
    return Z.T @ error, error.sum(axis=0), np.where(Z != 0, error @ D.T, 0)


def encoder_gradient(in_codes, X, b):
    """Gradients in the encoder (m, d) and its bias (m,) from that in the active codes (n, m)."""
    return in_codes.T @ (X - b), in_codes.sum(axis=0)


def adam(value, first, second, gradient, keep_first, keep_second, size, epsilon):
    """One step of Adam with these numbers: the parameter and its two moments."""
    first = keep_first * first + (1 - keep_first) * gradient
    second = keep_second * second + (1 - keep_second) * gradient**2
    return value - size * first / (np.sqrt(second) + epsilon), first, second


def update_atoms(D, first, second, gradient, *numbers):
    """Adam on unit atoms: without the part of the gradient along the atom, and back to unit norm."""
    gradient = gradient - (gradient * D).sum(axis=1, keepdims=True) * D
    D, first, second = adam(D, first, second, gradient, *numbers)
    return D / np.linalg.norm(D, axis=1, keepdims=True), first, second


def smallest_pivot(gram):
    """Return the smallest pivot of the Cholesky factorisation of gram (L, L); −inf when it breaks down."""
    try:
        return np.min(np.diag(np.linalg.cholesky(gram)) ** 2)
    except np.linalg.LinAlgError:
        return -np.inf


def icfl_pursuit(X, D, b, columns_per_round):
    """Codes of the pursuit, and the norm of every row's residual after each round: (n, m), (rounds, n)."""
    Z = np.zeros((len(X), len(D)))
    norms = np.zeros((len(columns_per_round), len(X)))
    for i, x in enumerate(X):
        r = x - b
        floor = DONE * np.linalg.norm(r)
        for t, columns in enumerate(columns_per_round):
            S = select((D @ r)[None], columns)[0]
            correlations = D[S] @ r
            if np.abs(correlations).max() > floor:
                gram = D[S] @ D[S].T
                if smallest_pivot(gram) < PIVOT:
                    gram = gram + RIDGE * np.eye(columns)
                z = np.linalg.solve(gram, correlations)
                Z[i, S] += z
                r = r - z @ D[S]
            norms[t, i] = np.linalg.norm(r)
    return Z, norms
