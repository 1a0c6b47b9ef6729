"""Policy: reinforcement learning with PyTorch, where episodes end inside a sequence.

`python benchmarks/examples/policy.py`. It needs PyTorch.

A cue is shown in the first step of an episode and then hidden; in the last step the policy has to repeat it. Workers
start their next episode at once, so the steps of a rollout hold parts of several episodes. ``resets`` says where each
begins: the state before it is zeroed within the one call over the rollout. Without that a program steps through the
rollout in Python, and zeroes the states of workers between two calls.
"""

from __future__ import annotations

import sys

import torch

import gpurnn.torch


class Recall:
    """Environments side by side: the cue, -1 or 1, in the first of a random number of steps, then zeros."""

    def __init__(self, workers: int, longest: int) -> None:
        self.workers, self.longest = workers, longest
        self.cue, self.left = torch.zeros(workers), torch.zeros(workers, dtype=torch.int64)
        self.first = torch.ones(workers, dtype=torch.bool)
        self._begin()

    def _begin(self) -> None:
        """A new episode for each worker whose last one ended."""
        drawn = torch.randint(0, 2, (self.workers,)) * 2.0 - 1
        steps = torch.randint(2, self.longest + 1, (self.workers,))
        self.cue, self.left = torch.where(self.first, drawn, self.cue), torch.where(self.first, steps, self.left)

    def observe(self) -> torch.Tensor:
        """(workers, 2): the cue where an episode begins, and whether it is the step in which to answer."""
        return torch.stack([self.cue * self.first, (self.left == 1).float()], dim=-1)

    def act(self, action: torch.Tensor) -> torch.Tensor:
        """The reward of each worker: 1 for the cue in the last step of an episode, else 0."""
        last = self.left == 1
        reward = (last & (action * 2.0 - 1 == self.cue)).float()
        self.left, self.first = self.left - 1, last
        self._begin()
        return reward


class Policy(torch.nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.recurrent, self.head = gpurnn.torch.GRU(2, hidden), torch.nn.Linear(hidden, 2)

    def forward(self, x, h=None, resets=None):  # type: ignore[no-untyped-def]
        y, h = self.recurrent(x, h, resets=resets)
        return self.head(y), h


def train(
    rollouts: int = 150, workers: int = 32, steps: int = 16, longest: int = 6, hidden: int = 16, lr: float = 0.02
) -> tuple[float, float]:
    """Train a policy: the share of right answers in the first and in the last tenth of the rollouts."""
    environment, policy = Recall(workers, longest), Policy(hidden)
    optimizer, state, right = torch.optim.Adam(policy.parameters(), lr=lr), None, []
    for _ in range(rollouts):
        observations, actions, rewards, answers, resets = [], [], [], [], []
        start: torch.Tensor | None = state
        with torch.no_grad():  # what the environments need, step by step
            for _ in range(steps):
                resets.append(environment.first)
                observations.append(environment.observe())
                answers.append(environment.left == 1)
                logits, state = policy(observations[-1][None], state, resets[-1][None])
                actions.append(torch.distributions.Categorical(logits=logits[0]).sample())
                rewards.append(environment.act(actions[-1]))
        x, answered = torch.stack(observations), torch.stack(answers)
        # The same steps again for the gradient, in one call, though episodes begin and end among them.
        logits, _ = policy(x, start, torch.stack(resets))
        chosen = torch.distributions.Categorical(logits=logits).log_prob(torch.stack(actions))
        loss = -((torch.stack(rewards) - 0.5) * chosen * answered).sum() / answered.sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        right.append(float(torch.stack(rewards).sum() / answered.sum()))
    tenth = max(rollouts // 10, 1)
    return sum(right[:tenth]) / tenth, sum(right[-tenth:]) / tenth


torch.manual_seed(0)
first, last = train(*map(int, sys.argv[1:]))
print(f"right answers: {first:.0%} of the first episodes, {last:.0%} of the last")
