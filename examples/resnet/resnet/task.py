"""Model, data and training: what any Flower app has, and nothing of ours."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import Normalize
from torchvision.transforms.v2.functional import horizontal_flip

IMAGES_PER_CLIENT = 4
TEST_IMAGES = 500
MEAN, STD = (0.3,), (0.38,)
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4

torch.set_num_threads(1)  # the same sums on every machine
normalize = Normalize(MEAN, STD)


class Block(nn.Module):
    """Two convolutions with BatchNorm and a skip connection."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x):
        """Keep the shape ``(n, width, H, W)``."""
        out = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + x)


class Net(nn.Module):
    """A small ResNet for 8x8 digits."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = Block(16)
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        """Map normalised images ``(n, 1, 8, 8)`` to logits."""
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.avg_pool2d(self.layer1(x), 2)
        return self.fc(x.flatten(1))


def load_images(partition_id, server_round):
    """Return the images and labels that one client trains on in a round: some are flipped."""
    digits = load_digits()
    start = TEST_IMAGES + partition_id * IMAGES_PER_CLIENT
    rows = slice(start, start + IMAGES_PER_CLIENT)
    images = torch.from_numpy(digits.images[rows]).float()[:, None] / 16
    coins = torch.Generator().manual_seed(1000 * partition_id + server_round)
    flipped = torch.rand(len(images), 1, 1, 1, generator=coins) < 0.5
    return torch.where(flipped, horizontal_flip(images), images), torch.from_numpy(
        digits.target[rows]
    ).long()


def load_data(partition_id, server_round, batch_size):
    """Return a loader of the images of one client, augmented and normalised."""
    images, labels = load_images(partition_id, server_round)
    order = torch.Generator().manual_seed(partition_id)
    dataset = TensorDataset(normalize(images), labels)
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, generator=order)


def train(net, trainloader, epochs, lr):
    """Train the model and return its mean loss."""
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY
    )
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
        return (net(normalize(images)).argmax(dim=1) == labels).float().mean().item()
