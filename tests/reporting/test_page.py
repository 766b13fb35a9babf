"""The page of a run: it stands alone, holds what it is to show, and its sliders work in a browser."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from test_run import write_run

from emfast import reporting
from emfast._files import read_tensors, write_tensors
from emfast.cli import main

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Elements(HTMLParser):
    """Notes every element, and whether they are closed in order."""

    VOID = ("meta", "br", "input", "img", "link")

    def __init__(self, text):
        super().__init__()
        self.open, self.found = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def data_of(page):
    text = page.read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a <b>"
    write_run(folder)
    for number in (1, 2):
        path = folder / f"rounds/{number:03d}/preview.safetensors"
        mask = torch.ones(4, 1, 8, 8)
        mask[:, :, :3] = 0
        write_tensors(path, {**read_tensors(path), "mask": mask})
    (folder / "config.yaml").write_text("sigma: 0.1\noperator: {class_path: '</script><b>'}\n")
    return folder


def test_the_page_stands_alone(run):
    page = reporting.write_report([run])
    assert page == run / "report.html"
    text = page.read_text()
    elements = Elements(text)
    assert elements.open == []
    loaded = [v for _, attributes in elements.found for k, v in attributes.items() if k in ("src", "href")]
    assert loaded == []
    assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z]+\.", text)
    assert sum(tag == "script" for tag, _ in elements.found) == 2  # the config has not ended the data
    assert html.escape(f"emfast train --config '{run / 'config.yaml'}'") in text  # as a shell takes it
    assert "21.00" in text  # readable without scripts


def test_what_the_page_holds(run):
    data = data_of(reporting.write_report([run]))
    rounds = data["runs"][0]["previews"]
    assert [preview["round"] for preview in rounds] == [0, 1, 2]
    assert rounds[1]["truth"] == rounds[2]["truth"]  # each picture once
    assert len(rounds[2]["psnr"]) == 4
    assert all(url.startswith("data:image/png;base64,") for url in data["pictures"])
    preview = read_tensors(run / "rounds/002/preview.safetensors")
    error = (preview["reconstruction"][1] - preview["truth"][1]).square().mean()
    assert rounds[2]["psnr"][1] == pytest.approx(float(10 * torch.log10(4 / error)))


def test_missing_pixels_are_transparent(run):
    import base64
    import io

    import numpy as np
    from PIL import Image

    data = data_of(reporting.write_report([run]))
    url = data["pictures"][data["runs"][0]["previews"][2]["observation"][0]]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGBA"))
    assert (pixels[:3, :, 3] == 0).all()
    assert (pixels[3:, :, 3] == 255).all()


def test_runs_side_by_side(run, tmp_path, capsys):
    other = tmp_path / "other"
    write_run(other, truth=False)
    (other / "config.yaml").write_text("sigma: 0.2\n")
    output = tmp_path / "both.html"
    assert main(["report", str(run), str(other), "--output", str(output)]) == 0
    assert str(output) in capsys.readouterr().out
    assert [each["name"] for each in data_of(output)["runs"]] == ["a <b>", "other"]
    text = output.read_text()
    assert "<tr><td>sigma</td><td>0.1</td><td>0.2</td></tr>" in text


@pytest.mark.skipif(BROWSER is None, reason="no browser is installed")
def test_the_sliders_in_a_browser(run, tmp_path):
    page = reporting.write_report([run])
    data = data_of(page)
    move = """<script>
      for (const [id, value] of [["image", 1], ["round", 0]]) {
        document.getElementById(id).value = value;
        document.getElementById(id).dispatchEvent(new Event("input"));
      }
      document.title = document.querySelector(".stage ~ .said").textContent;
    </script></body>"""
    moved = tmp_path / "moved.html"
    moved.write_text(page.read_text().replace("</body>", move))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run([BROWSER, *flags, moved.as_uri()], capture_output=True, text=True, timeout=60, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout)[1]
    assert title == f"observation | reconstruction, round 1: {data['runs'][0]['previews'][1]['psnr'][1]:.2f} dB"
    assert done.stdout.count("<circle") > 3  # the curves
    assert re.search(r"round 2: 2\d\.\d\d<", done.stdout)  # the last value of one, before any pointer moves
    marks = re.findall(r'<text[^>]*text-anchor="end"[^>]*>([^<]*)</text>', done.stdout)
    assert len(marks) > 3
    assert all(len(mark) < 8 for mark in marks), marks  # round numbers
