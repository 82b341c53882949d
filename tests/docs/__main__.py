"""`python -m tests.docs`: draws the pictures of the documentation anew, and says which have changed."""

from tests.docs.pages import ROOT
from tests.docs.pictures import pictures

if __name__ == "__main__":
    for path, content in pictures().items():
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
            print(f"drawn: {path.relative_to(ROOT)}")
