"""Model, data and training: what any Flower app has, and nothing of ours."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

IMAGES_PER_CLIENT = 4
TEST_IMAGES = 500

torch.set_num_threads(1)  # the same sums on every machine


class Net(nn.Module):
    """A small convolutional network for 8x8 digits."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 5, stride=2, padding=2)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1)
        self.fc = nn.Linear(24 * 4 * 4, 10)

    def forward(self, x):
        """Map images ``(n, 1, 8, 8)`` in [0, 1] to logits."""
        x = torch.tanh(self.conv1(x))
        x = torch.tanh(self.conv2(x))
        return self.fc(x.flatten(1))


def load_images(partition_id):
    """Return the private images and labels of one client."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    labels = torch.from_numpy(digits.target).long()
    start = TEST_IMAGES + partition_id * IMAGES_PER_CLIENT
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


def load_test_images():
    """Return images and labels that no client holds."""
    digits = load_digits()
    images = torch.from_numpy(digits.images[:TEST_IMAGES]).float()[:, None] / 16
    return images, torch.from_numpy(digits.target[:TEST_IMAGES])


def test(net):
    """Return the accuracy on the test images."""
    images, labels = load_test_images()
    net.eval()
    with torch.no_grad():
        return (net(images).argmax(dim=1) == labels).float().mean().item()
