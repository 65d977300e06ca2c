"""Print the shell commands of README.md that stand under a marker `<!-- ci: NAME -->`: CI runs those and no others."""

import re
import sys
from pathlib import Path


def block(readme: str, name: str) -> str:
    """The body of the ```bash fence right under the marker `name`."""
    found = re.findall(rf"<!-- ci: {re.escape(name)} -->\n```bash\n(.*?)```", readme, re.DOTALL)
    if len(found) != 1:
        raise SystemExit(f"README.md has {len(found)} bash blocks under '<!-- ci: {name} -->', expected 1")
    return found[0]


if __name__ == "__main__":
    print(block((Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8"), sys.argv[1]), end="")
