"""sb3-contrib's RecurrentPPO: a whole rollout is one call of the LSTM.

PPO's update goes through stretches of steps in which episodes begin. sb3-contrib then calls the
LSTM step by step, to set its state to zero; `resets` tells one call the same.

    RecurrentPPO(OneCall, "CartPole-v1")
"""

import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates

import bptt
import gain


class OneCall(RecurrentActorCriticPolicy):
    """The policy "MlpLstmPolicy" on bptt's LSTM."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        bptt.convert(self)

    @staticmethod
    def _process_sequence(features, lstm_states, episode_starts, lstm):
        rows = lstm_states[0].shape[1]
        x = features.reshape(rows, -1, lstm.input_size).transpose(0, 1)  # [T, rows, features]
        resets = episode_starts.reshape(rows, -1).t().bool()
        y, states = lstm(x, lstm_states, resets=resets)
        return y.transpose(0, 1).flatten(0, 1), states


def pair(rows=8, steps=64, hidden=256):
    """Forward and backward through a rollout; values of its states."""
    space, actions = spaces.Box(-1, 1, (16,)), spaces.Discrete(4)
    options = {"lr_schedule": lambda _: 3e-4, "lstm_hidden_size": hidden}
    theirs = RecurrentActorCriticPolicy(space, actions, **options)
    ours = OneCall(space, actions, **options)
    ours.load_state_dict(theirs.state_dict())
    count = rows * steps
    seen, done = torch.randn(count, 16), torch.randint(4, (count,))
    starts = (torch.rand(count) < 0.02).float()
    zeros = tuple(torch.zeros(1, rows, hidden) for _ in range(2))

    def update(policy):
        policy.zero_grad()
        values, log_p, _ = policy.evaluate_actions(seen, done, RNNStates(zeros, zeros), starts)
        (values.square().mean() - log_p.mean()).backward()
        return values.detach(), policy.lstm_actor.weight_hh_l0.grad

    return lambda: update(theirs), lambda: update(ours)


if __name__ == "__main__":
    gain.show(pair())
