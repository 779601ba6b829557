"""Model, data and training: what any Flower app has, and nothing of ours."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

IMAGES_PER_CLIENT = 8
PUBLIC_IMAGES = 500

torch.set_num_threads(1)  # the same sums on every machine


class Net(nn.Module):
    """A fully connected network for 8x8 digits."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(64, 256)
        self.head = nn.Linear(256, 10)

    def forward(self, x):
        """Map images ``(n, 1, 8, 8)`` in [0, 1] to logits."""
        return self.head(torch.relu(self.hidden(x.flatten(1))))


def load_images(partition_id):
    """Return the private images and labels of one client."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    start = PUBLIC_IMAGES + partition_id * IMAGES_PER_CLIENT
    rows = slice(start, start + IMAGES_PER_CLIENT)
    return images[rows], labels[rows]


def load_data(partition_id, batch_size):
    """Return a loader of the images of one client."""
    order = torch.Generator().manual_seed(partition_id)
    dataset = TensorDataset(*load_images(partition_id))
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=order)


def train(net, trainloader, epochs, lr):
    """Train the model and return its mean loss."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    net.train()
    running_loss = 0.0
    for _ in range(epochs):
        for images, labels in trainloader:
            optimizer.zero_grad()
            loss = criterion(net(images), labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
    return running_loss / (epochs * len(trainloader))


def load_public_images():
    """Return images and labels that no client holds."""
    digits = load_digits()
    images = torch.from_numpy(digits.images[:PUBLIC_IMAGES]).float()[:, None] / 16
    return images, torch.from_numpy(digits.target[:PUBLIC_IMAGES])
