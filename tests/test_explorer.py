"""The models run in a browser as they do in PyTorch, and everybody can use the page around them."""

import importlib.util
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from browsers import BROWSER, opened_browser, served
from maevit_course.data import preprocess
from maevit_course.interpretation import attention_maps, position_similarity
from maevit_course.models import load_model
from maevit_course.patches import patchify
from maevit_course.shapes import make_shapes
from notebooks import ROOT

NODE = ROOT / "web/node_modules"
MISSING = [
    name for name in ("onnx", "onnxscript", "playwright") if not importlib.util.find_spec(name)
]
MISSING += [] if BROWSER else ["a Chromium or Chrome"]
MISSING += [] if (NODE / "onnxruntime-web").is_dir() else ["the packages of web/ (npm ci)"]
needs_page = pytest.mark.skipif(bool(MISSING), reason=f"missing: {', '.join(MISSING)}")
CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "The explorer as it is published."
    from explorer import build

    out = tmp_path_factory.mktemp("site") / "explorer"
    build(out)
    return out


@pytest.fixture(scope="module")
def address(folder):
    with served(folder) as address:
        yield f"{address}/"


@pytest.fixture(scope="module")
def browser():
    with opened_browser(*CAMERA) as browser:
        yield browser


@pytest.fixture
def page(browser, address):
    "The page once it has made its first reconstruction; nothing may go wrong until the test ends."
    context = browser.new_context(permissions=["camera"])
    problems = []

    def local_only(route):
        if route.request.url.startswith((address, "data:", "blob:")):
            return route.continue_()
        problems.append(f"request to {route.request.url}")
        return route.abort()

    context.route("**/*", local_only)
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.on("console", lambda said: problems.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)
    page.wait_for_function("() => document.getElementById('summary').textContent")
    yield page
    context.close()
    assert not problems


def picture(page):
    "The pixels of the prediction."
    return page.locator("#output canvas").evaluate("canvas => canvas.toDataURL()")


def wait_for_new(page, before):
    "Wait until the prediction differs from an earlier one."
    script = "before => document.querySelector('#output canvas').toDataURL() !== before"
    page.wait_for_function(script, arg=before)


def run_in_page(page, model, pixels, keep):
    "Run a model of the page on pixels (S, S, 4) and return its outputs as tensors."
    script = """async ([program, model, pixels, size, keep]) => {
        const { Engine } = await import(new URL('engine.js', location));
        window.engine ??= new Engine(program, () => {});
        const image = new ImageData(new Uint8ClampedArray(pixels), size, size);
        const outputs = Object.entries(await window.engine.run(model, image, keep));
        return outputs.map(([name, { data, dims }]) => [name, [...data], dims]);
    }"""
    size = pixels.shape[0]
    arguments = ["ort.wasm.gz", model, pixels.flatten().tolist(), size, keep.tolist()]
    outputs = page.evaluate(script, arguments)
    return {name: torch.tensor(data).view(dims) for name, data, dims in outputs}


@needs_page
def test_the_page_computes_what_pytorch_does(page, folder):
    "Ten pictures with ten masks, from one visible patch to all."
    for about in json.loads((folder / "models.json").read_text())["models"]:
        mae, classifier = load_model(about["name"]), None
        if "classifier" in about:
            classifier = load_model(f"{about['name']}-classifier")
        size, n = mae.config.image_size, mae.config.n_patches
        images = make_shapes(10, size, seed=3)[0]
        noise = torch.rand(10, n, generator=torch.Generator().manual_seed(4))
        for i, image in enumerate(images):
            visible = 1 + i * (n - 1) // 9
            keep = noise[i].argsort()[:visible]
            found = run_in_page(page, about["file"]["name"], opaque(image), keep)
            patches = patchify(preprocess(image, size), mae.config.patch_size)
            with torch.no_grad():
                prediction = mae.decoder(mae.encoder(patches, keep[None]), keep[None])[0]
            expected = {
                "prediction": prediction,
                "errors": (prediction - patches[0]).square().mean(1),
                "encoder": attention_maps(mae, image[None], keep[None])[:, 0],
                "decoder": attention_maps(mae, image[None], keep[None], "decoder")[:, 0],
            }
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-3)
            for part in ("encoder", "decoder"):
                alike = found[f"{part}_positions"][:-1, :-1]
                torch.testing.assert_close(alike, position_similarity(mae, part), rtol=0, atol=1e-3)
            if classifier:
                found = run_in_page(page, about["classifier"]["name"], opaque(image), keep)
                with torch.no_grad():
                    logits = classifier(preprocess(image, size), keep[None])[0]
                torch.testing.assert_close(
                    found["probabilities"], logits.softmax(0), rtol=0, atol=1e-3
                )


def opaque(image):
    "An image (3, S, S) as the pixels of a canvas (S, S, 4)."
    return torch.cat([image, torch.full_like(image[:1], 255)]).permute(1, 2, 0)


@needs_page
def test_clicks_change_the_picture_and_the_answer(page):
    page.click("#load-classifier")
    page.wait_for_selector(".chart svg")
    before, answer = picture(page), page.inner_text("#answers table")
    visible = page.locator("#input [aria-selected=false]")
    count = visible.count()
    visible.first.click()
    wait_for_new(page, before)
    assert visible.count() == count - 1
    page.wait_for_function(
        "before => document.querySelector('#answers table').innerText !== before", arg=answer
    )
    # In the second picture, a click chooses a patch and hides nothing.
    page.locator("#output [role=gridcell]").nth(9).click()
    assert "row 2, column 2" in page.inner_text("#chosen")
    assert visible.count() == count - 1
    # So does the space bar, and the help says so.
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    assert "row 2, column 3" in page.inner_text("#chosen")
    assert visible.count() == count - 1
    assert "Space" in page.inner_text("#output-hint")
    page.click("#choose-class")
    page.wait_for_selector("#encoder .layer figure")
    assert "class token" in page.inner_text("#chosen")
    # The first row of the table is repeated next to the pictures.
    best = page.locator("#answers tbody tr").first
    name, share = best.locator("th").inner_text(), best.locator("td").first.inner_text()
    assert page.inner_text("#verdict strong") == f"{name} {share}"


@needs_page
def test_a_drag_paints_and_the_slider_follows(page):
    page.click("#show-all")
    board = page.locator("#input [role=grid]").bounding_box()
    side = board["width"] / 8
    page.mouse.move(board["x"] + side / 2, board["y"] + side / 2)
    page.mouse.down()
    page.mouse.move(board["x"] + 3.5 * side, board["y"] + side / 2, steps=12)
    page.mouse.up()
    hidden = page.locator("#input [aria-selected=true]")
    assert hidden.count() == 4
    assert page.input_value("#ratio") == "4"
    page.locator("#ratio").fill("63")
    assert hidden.count() == 63
    page.locator("#input [aria-selected=false]").click()  # the last one stays visible
    assert hidden.count() == 63


@needs_page
def test_the_readout_follows_the_mask(page):
    page.click("#show-all")
    cells = page.locator("#input [role=gridcell]")
    cells.nth(0).hover()
    assert "Row 1, column 1 · visible" in page.inner_text("#readout")
    page.mouse.down()
    cells.nth(2).hover()
    assert "Row 1, column 3 · hidden" in page.inner_text("#readout")
    page.mouse.up()
    assert "Row 1, column 3 · hidden" in page.inner_text("#readout")
    cells.nth(2).click()
    assert "Row 1, column 3 · visible" in page.inner_text("#readout")


@needs_page
def test_a_swipe_scrolls_and_a_tap_hides(page):
    page.set_viewport_size({"width": 390, "height": 844})
    touch = page.context.new_cdp_session(page)
    touch.send("Emulation.setTouchEmulationEnabled", {"enabled": True})
    low = "[...document.querySelectorAll('button, .button')].filter(b => 0 < b.offsetHeight && "
    assert page.evaluate(low + "b.offsetHeight < 40).map(b => b.textContent)") == []
    page.click("#show-all")
    page.evaluate("scrollTo({ top: 300, behavior: 'instant' })")
    board = page.locator("#input [role=grid]").bounding_box()
    side, hidden = board["width"] / 8, page.locator("#input [aria-selected=true]")

    def draw(*places):
        "Draw with a finger from patch to patch; a place is a column and a row."
        for i, (column, row) in enumerate(places):
            point = {"x": board["x"] + (column + 0.5) * side, "y": board["y"] + (row + 0.5) * side}
            kind = "touchMove" if i else "touchStart"
            touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})

    draw((4, 4))
    assert hidden.count() == 1
    draw((1, 2), (1.5, 2), (2, 2), (3, 2))  # a line to the right
    assert hidden.count() == 4
    draw(*[(4, 7 - step / 2) for step in range(11)])  # a swipe upwards
    page.wait_for_function("() => scrollY > 350")
    assert hidden.count() == 4


@needs_page
def test_the_chosen_patch_is_outlined_on_the_largest_error(page):
    page.click("[data-view=errors]")
    largest = """() => {
        const canvas = document.querySelector('#output canvas');
        const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        const alphas = data.filter((_, i) => i % 4 === 3);
        return alphas.indexOf(Math.max(...alphas));
    }"""
    cell = page.locator("#output [role=gridcell]").nth(page.evaluate(largest))
    cell.click()
    assert page.inner_text("#output-title") == "How far it is off"
    page.locator("#ratio").focus()
    page.mouse.move(0, 0)
    image = Image.open(io.BytesIO(cell.screenshot())).convert("L")
    darkest, brightest = image.getextrema()
    assert brightest > 2 * darkest


@needs_page
def test_a_reconstruction_by_keyboard_alone(page):
    focused = "document.activeElement.closest('#input [role=grid]') !== null"
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate(focused):
            break
    assert page.evaluate(focused)
    before = picture(page)
    for key in ("ArrowDown", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    label = "() => document.activeElement.ariaLabel"
    first = page.evaluate(label)
    assert first.startswith("Row 2, column 3, ")
    page.keyboard.press("Space")
    wait_for_new(page, before)
    assert page.evaluate(label) != first
    page.keyboard.press("Enter")
    assert "row 2, column 3" in page.inner_text("#chosen")
    assert page.inner_text("#readout").startswith("Row 2, column 3")
    # The values of a map can be read, too, even when it is drawn again meanwhile.
    page.locator("#decoder .map").first.focus()
    for key in ("Home", "ArrowUp", *["ArrowDown"] * 8, "ArrowRight"):
        page.keyboard.press(key)
    value = page.locator("#decoder figure").first.locator("output")
    assert value.inner_text().startswith("Row 8, column 2: ")
    assert value.inner_text().endswith("%")
    page.evaluate("window.oldMap = document.activeElement")
    page.evaluate("document.getElementById('shuffle').click()")
    page.wait_for_function("() => !oldMap.isConnected")
    assert value.inner_text().startswith("Row 8, column 2: ")
    page.keyboard.press("ArrowUp")
    assert value.inner_text().startswith("Row 7, column 2: ")
    # The button disappears, so the focus goes to the answer.
    page.locator("#load-classifier").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "answer"
    page.wait_for_selector(".chart svg")


@needs_page
def test_the_pictures_fit_on_the_screen(page):
    page.set_viewport_size({"width": 1366, "height": 768})
    for board in ("#input", "#output"):
        box = page.locator(board).bounding_box()
        assert box["y"] + box["height"] < 768
    page.set_viewport_size({"width": 390, "height": 844})
    first, last = (page.locator(name).bounding_box() for name in ("#input", "#ratio"))
    assert last["y"] + last["height"] - first["y"] < 844


@needs_page
@pytest.mark.parametrize("width", [390, 1366])
def test_captions_of_maps_have_two_lines_whatever_the_number(page, width):
    page.set_viewport_size({"width": width, "height": 800})
    page.wait_for_selector("#decoder figure")
    lines = """figures => figures.map(figure => {
        const [caption, note] = ["figcaption", "figcaption span"].map(s => figure.querySelector(s));
        note.lastChild.textContent = note.lastChild.textContent.replace(/\\d+/, "100");
        const high = caption.clientHeight / parseFloat(getComputedStyle(caption).lineHeight);
        return [Math.round(high), caption.scrollWidth > caption.clientWidth];
    })"""
    found = page.locator(":is(#encoder, #decoder) figure").evaluate_all(lines)
    assert found == [[2, False]] * len(found)


@needs_page
def test_own_pictures(page):
    before, file = picture(page), io.BytesIO()
    Image.fromarray(np.full((40, 60, 3), (200, 30, 30), np.uint8)).save(file, "PNG")
    content = {"name": "red.png", "mimeType": "image/png", "buffer": file.getvalue()}
    page.set_input_files("#file", content)
    wait_for_new(page, before)
    pixel = page.locator("#input canvas").evaluate(
        "canvas => [...canvas.getContext('2d').getImageData(9, 9, 1, 1).data]"
    )
    assert pixel == [200, 30, 30, 255]
    assert page.inner_text("#picture-name") == "red.png"
    red = picture(page)
    page.locator("#examples label").first.click()
    wait_for_new(page, red)
    page.locator("#own-pictures label").click()
    page.wait_for_function(
        "red => document.querySelector('#output canvas').toDataURL() === red", arg=red
    )
    page.set_input_files("#file", {**content, "name": "notes.txt", "buffer": b"no picture"})
    page.wait_for_function("() => !document.getElementById('problem').hidden")
    assert "“notes.txt” is not a picture" in page.inner_text("#problem")

    before = picture(page)
    page.click("#camera")
    page.wait_for_function("() => document.querySelector('video').videoWidth")
    page.click("text=Take the picture")
    wait_for_new(page, before)
    assert not page.is_visible("#problem")
    assert page.locator("#own-pictures label").count() == 2


@needs_page
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_no_serious_findings_of_axe(page, scheme, width):
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    page.set_viewport_size({"width": width, "height": 800})
    page.click("#load-classifier")
    page.wait_for_selector(".chart svg")
    page.add_script_tag(path=NODE / "axe-core/axe.min.js")
    found = page.evaluate("async () => (await axe.run()).violations")
    serious = [
        (rule["id"], [node["html"][:120] for node in rule["nodes"]][:3])
        for rule in found
        if rule["impact"] in ("serious", "critical")
    ]
    assert not serious
    assert page.evaluate("document.documentElement.scrollWidth") == width


@needs_page
def test_the_first_visit_loads_at_most_8_mb(folder):
    about = json.loads((folder / "models.json").read_text())
    later = {model["file"]["name"] for model in about["models"][1:]}
    later |= {model["classifier"]["name"] for model in about["models"] if "classifier" in model}
    first = [file for file in folder.iterdir() if file.name not in later]
    assert sum(file.stat().st_size for file in first) <= 8e6


def test_examples_are_test_images(cifar10_file):
    "The photographs are cut out of a committed figure; JPEG changes them slightly."
    from explorer import PHOTOGRAPHS, gallery_photographs

    cifar = np.load(cifar10_file)
    found = np.stack([np.asarray(image) for image in gallery_photographs()]).astype(float)
    assert np.abs(found - cifar["test_images"][: len(found)]).mean() < 5
    labels = cifar["test_labels"][: len(found)].ravel()
    assert [cifar["class_names"][label] for label in labels] == PHOTOGRAPHS
