"""Makes digits.png and digits.txt: pip install scikit-learn==1.9.1 pillow; python digits.py"""

from pathlib import Path

import numpy
from PIL import Image
from sklearn.datasets import load_digits

COLUMNS = 60
HERE = Path(__file__).parent

digits = load_digits()
count = len(digits.target)
rows = -(-count // COLUMNS)
# Pixels are whole numbers from 0 to 16; times 15 they fill 8 bits.
cells = numpy.zeros((rows * COLUMNS, 8, 8), numpy.uint8)
cells[:count] = 15 * digits.images
sheet = cells.reshape(rows, COLUMNS, 8, 8).swapaxes(1, 2).reshape(rows * 8, COLUMNS * 8)
Image.fromarray(sheet).save(HERE / "digits.png", optimize=True)
(HERE / "digits.txt").write_text("".join(map(str, digits.target)) + "\n")
