"""What a person does at /v2/docs; run as `python try_page.py URL CHROMIUM [SCREENSHOT]`, prints what was done."""

import re
import sys

from playwright.sync_api import expect, sync_playwright

SECONDS = 15_000  # milliseconds


def shown(page, text):
    expect(page.locator("#answer")).to_contain_text(text, timeout=SECONDS)


def models_are_listed(page):
    expect(page.locator("#models tr")).to_have_count(7, timeout=SECONDS)
    expect(page.locator("#models")).to_contain_text("INPUT0 INT32 [-1,16], INPUT1 INT32 [-1,16]")
    expect(page.locator("#endpoints tr").nth(20)).to_be_visible(timeout=SECONDS)


def a_sample_is_predicted(page):
    page.locator("#models tr", has_text="scores").get_by_role("button").click()
    expect(page.locator("#path")).to_have_value("/v2/models/scores/infer")
    page.locator("#send").click()
    shown(page, "200 OK")
    shown(page, "gateway-prediction-id: ")
    shown(page, '"name": "OUTPUT0"')


def an_error_is_told(page):
    page.locator("#body").fill('{"inputs": []}')
    page.locator("#send").click()
    shown(page, "400 Bad Request")
    shown(page, '"error": ')


def an_endpoint_is_taken(page):
    page.locator("#endpoints tr", has_text="Statistics of all models").get_by_role("button").click()
    page.locator("#send").click()
    shown(page, '"model_stats"')


def a_label_is_sent_for_what_was_predicted(page):
    page.locator("#endpoints tr", has_text="Send labels").get_by_role("button").click()
    expect(page.locator("#send")).to_be_in_viewport()
    expect(page.locator("#path")).to_have_value("/v2/models/scores/feedback")
    expect(page.locator("#body")).not_to_have_value(re.compile("01a20748a07801-0000000001|^$"))
    page.locator("#send").click()
    shown(page, '"accepted": 1')


def the_chosen_model_stays_chosen(page):
    endpoints = page.locator("#endpoints tr")
    endpoints.filter(has_text="Statistics of all models").get_by_role("button").click()
    endpoints.filter(has_text="Send labels").get_by_role("button").click()
    expect(page.locator("#path")).to_have_value("/v2/models/scores/feedback")
    page.locator("#path").fill("/v2/models/fixed/infer")
    endpoints.filter(has_text="Send labels").get_by_role("button").click()
    expect(page.locator("#path")).to_have_value("/v2/models/fixed/feedback")
    # What another model answered is no prediction of this one.
    expect(page.locator("#body")).to_have_value(re.compile("01a20748a07801-0000000001"))


def an_inference_is_taken_with_its_sample(page):
    page.locator("#endpoints tr", has_text="Ask a model for a prediction.").get_by_role("button").click()
    expect(page.locator("#body")).to_have_value(re.compile('"inputs"'))


FLOWS = (
    models_are_listed,
    a_sample_is_predicted,
    a_label_is_sent_for_what_was_predicted,
    the_chosen_model_stays_chosen,
    an_inference_is_taken_with_its_sample,
    an_error_is_told,
    an_endpoint_is_taken,
)


def main():
    faults = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=sys.argv[2], args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 1000})
        # A refusal is an error to the console too; any other is a fault of the page.
        page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(sys.argv[1] + "/v2/docs")
        for flow in FLOWS:
            flow(page)
            print(flow.__name__, flush=True)
            if flow is a_sample_is_predicted and len(sys.argv) > 3:
                page.screenshot(path=sys.argv[3])
        browser.close()
    assert all("status of 400" in fault for fault in faults), faults


if __name__ == "__main__":
    main()
