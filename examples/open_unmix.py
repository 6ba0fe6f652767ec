"""Open-Unmix (Stoeter et al. 2019), which separates music: `bptt.convert`, and nothing else."""

import copy

import torch
from openunmix.model import OpenUnmix

import bptt
import gain


def pair(frames=255, bins=1024, hidden=512):
    """A stereo spectrogram through the network, as when music is separated."""
    theirs = OpenUnmix(nb_bins=bins, hidden_size=hidden).eval()
    ours = bptt.convert(copy.deepcopy(theirs))
    spectrogram = torch.rand(1, 2, bins, frames)

    def separate(model):
        with torch.no_grad():
            return model(spectrogram)

    return lambda: separate(theirs), lambda: separate(ours)


if __name__ == "__main__":
    gain.show(pair())
