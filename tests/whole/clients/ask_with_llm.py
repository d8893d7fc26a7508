"""Simon Willison's llm against a gateway: `python ask_with_llm.py URL MODEL`."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

URL, MODEL = sys.argv[1:]
LISTED = f"""- model_id: here
  model_name: {MODEL}
  api_base: {URL}/v1
  supports_schema: true
  supports_tools: true
"""
FORM = {"type": "object", "properties": {"at": {"enum": ["cat", "dog"]}}, "required": ["at"]}

if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    (folder / "extra-openai-models.yaml").write_text(LISTED)
    os.environ["LLM_USER_PATH"] = str(folder)
    import llm

    model: Any = llm.get_model("here")
    model.key = "none"
    asked = {"temperature": 0, "max_tokens": 12}
    whole = model.prompt("Once upon a time", stream=False, **asked).text()
    assert "".join(model.prompt("Once upon a time", **asked)) == whole
    # a weak model would write nothing but blanks
    form = {**FORM, "additionalProperties": False, "x-guidance": {"whitespace_flexible": False}}
    formed = model.prompt("Look.", schema=form, temperature=0, max_tokens=100)
    assert '"at"' in formed.text()
    print("llm: ok")
