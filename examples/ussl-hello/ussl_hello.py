"""A masking in the shape of acoustic shadows."""

from ussl.hookspecs import hookimpl
from ussl.parts import Draws, Mask, Masking, View


class Shadows(Masking):
    """Hides whole columns of patches, as the shadow of bone or gas does."""

    def __init__(self, *, ratio: float = 0.5) -> None:
        """ratio: fraction of the columns that is hidden, above 0 and below 1."""
        super().__init__()
        if not 0 < ratio < 1:
            raise ValueError(f"ratio must be above 0 and below 1, not {ratio}")
        self.ratio = ratio

    def forward(self, view: View, grid: tuple[int, int], draws: Draws) -> Mask:
        rows, columns = grid
        count = min(max(round(self.ratio * columns), 1), columns - 1)
        columns_BKc = draws.uniform("shadows", 1, columns).argsort(dim=-1) < count  # each image its own, K = 1
        hidden_BKN = columns_BKc[:, :, None].expand(-1, -1, rows, -1).flatten(2)
        asked = count * rows
        return Mask(hidden_BKN, predict=hidden_BKN[:, :, None], seen=rows * columns - asked, asked=asked)


@hookimpl
def ussl_maskings() -> dict[str, type[Masking]]:
    """Offer shadows."""
    return {"shadows": Shadows}
