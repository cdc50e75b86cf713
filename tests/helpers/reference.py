"""LARS by the book: NumPy, float64, one layer at a time, nothing from the package.

Step numbers are those of section 3.2.3 of You, Gitman and Ginsburg 2017,
arXiv:1708.03888v1.
"""

import numpy as np


def trust_ratio(w, g, eta, beta, eps, denominator, fallback, most=np.inf):
    """Step 1, at most `most`, with β‖w‖ where the paper misprints β‖∇w‖."""
    norm_w = np.sqrt(np.sum(w**2))
    norm_g = np.sqrt(np.sum((g + beta * w if denominator == "joint" else g) ** 2))
    if norm_w == 0 or norm_g == 0:
        return fallback
    length = norm_g if denominator == "joint" else norm_g + beta * norm_w
    return min(eta * norm_w / (length + eps), most)


class Lars:
    """A dict of arrays trained by LARS; `decayed` and `adapted` name its layers."""

    def __init__(self, params, *, decayed, adapted, order="scaled", beta=0.0, mu=0.9,
                 eta=0.001, eps=0.0, denominator="separate", fallback=0.02,
                 nesterov=False, most=np.inf):  # fmt: skip
        self.params = {k: np.array(w, np.float64) for k, w in params.items()}
        self.buffer = {k: np.zeros_like(w) for k, w in self.params.items()}
        self.decayed, self.adapted, self.order = decayed, adapted, order
        self.beta, self.mu, self.eta, self.eps = beta, mu, eta, eps
        self.denominator, self.fallback, self.most = denominator, fallback, most
        self.nesterov = nesterov

    def _ratio(self, name, w, g, beta, denominator):
        if name not in self.adapted:
            return self.fallback
        rule = (self.eta, beta, self.eps, denominator, self.fallback, self.most)
        return trust_ratio(w, g, *rule)

    def _momentum(self, name, x):
        """Step 4, a = μa + x; Nesterov's update is x + μa with the new a."""
        self.buffer[name] = self.mu * self.buffer[name] + x
        return x + self.mu * self.buffer[name] if self.nesterov else self.buffer[name]

    def step(self, grads, lr):
        """Steps 1 to 5 with the learning rate γ = lr; returns the new parameters."""
        for name, w in self.params.items():
            g = np.asarray(grads[name], np.float64)
            beta = self.beta if name in self.decayed else 0.0
            if self.order == "post":
                a = self._momentum(name, g + beta * w)
                update = lr * self._ratio(name, w, a, 0.0, "joint") * a
            else:
                ratio = self._ratio(name, w, g, beta, self.denominator)
                direction = ratio * (g + beta * w)  # steps 1 and 3
                if self.order == "scaled":  # step 2 before step 4, as printed
                    update = self._momentum(name, lr * direction)
                else:
                    update = lr * self._momentum(name, direction)
            self.params[name] = w - update  # step 5, "w = w a" in print
        return self.params
