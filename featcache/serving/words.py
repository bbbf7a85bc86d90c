"""The words of the page, in English and in Chinese.

`page/*.js` says `t("...")` with the same English sentences, `page/index.html` has them as `data-word`. The
page fills what stands in braces.
"""

from __future__ import annotations

LANGUAGES = ("en", "zh")
CHINESE = {
    "Text": "文本",
    "Second text": "第二个文本",
    "Label it": "分类",
    "Enter sends, Shift+Enter starts a new line": "回车发送，Shift+回车换行",
    "Examples from the test set": "测试集中的例子",
    "Copy as curl": "复制为 curl 命令",
    "Copy as Python": "复制为 Python 代码",
    "Label files": "给文件打标签",
    "Choose files": "选择文件",
    "or drop them here": "或拖放到这里",
    "Columns, where they are not found by their names": "列名（按常用名称找不到时填写）",
    "Column with the text": "文本所在的列",
    "Column with the second text": "第二个文本所在的列",
    "Earlier in this tab": "本标签页的历史",
    "Clear": "清空",
    "There is no text yet: write one first.": "还没有文本：请先输入。",
    "This model compares two texts, and the second one is empty.": "这个模型比较两个文本，而第二个是空的。",
    "words alone": "只用词",
    "numbers": "数值",
    "labels: {count}": "标签数：{count}",
    "at most {share} of its answers are wrong": "回答的错误率不超过 {share}",
    "at least {share} of texts are answered": "至少回答 {share} 的文本",
    "intervals of {level} %": "{level} % 区间",
    "The server does not answer. Does it still run?": "服务器没有响应。它还在运行吗？",
    "The server answers with an error ({status}).": "服务器返回错误（{status}）。",
    "Tokens: {count}, read in parts of at most {limit}: {windows}": (
        "token 数：{count}，分 {windows} 段读取，每段最多 {limit}"
    ),
    "Tokens: {count} of at most {limit}": "token 数：{count}，最多 {limit}",
    "Tokens: {count}, of which {limit} are read; what is struck through is cut off.": (
        "token 数：{count}，只读取其中 {limit} 个；划线部分被截断。"
    ),
    "Tokens: {count}, of which {limit} are read; the rest is cut off.": (
        "token 数：{count}，只读取其中 {limit} 个；其余被截断。"
    ),
    "No answer": "不作答",
    "No label": "没有标签",
    "from {share}": "从 {share} 起",
    "and {count} more": "另有 {count} 个",
    "looked at {share}, ": "关注度 {share}，",
    "speaks for it": "支持",
    "speaks against it": "反对",
    "The strongest: {marks}.": "影响最大的：{marks}。",
    "What decided": "判断依据",
    "Between {low} and {high}: such intervals contain {level} % of the numbers.": (
        "在 {low} 与 {high} 之间：这样的区间包含 {level} % 的数值。"
    ),
    "It answers from {share} on.": "概率达到 {share} 才回答。",
    "The text is too long, and only a part of it was read.": "文本太长，只读取了一部分。",
    "The model does not know most of this text's words.": "模型不认识这个文本的大部分词。",
    "Answer": "结果",
    "Copied.": "已复制。",
    "Selected: copy it with Ctrl+C.": "已选中：请按 Ctrl+C 复制。",
    "The server does not take this file, or does not answer.": "服务器不接收这个文件，或没有响应。",
    "Sending: {share} %": "正在发送：{share} %",
    "Waiting, files before it: {count}": "等待中，前面的文件数：{count}",
    "Waiting": "等待中",
    "Reading": "正在读取",
    "Rows: {done} of {total}": "行：{done} / {total}",
    "Not labelled": "没有打标签",
    "Rows labelled: {done} of {total}": "已打标签的行：{done} / {total}",
    "no answer: {count}": "不作答：{count}",
    "Download {name}": "下载 {name}",
    "Texts that are too long and were read in part: {count}": "太长而只读取了一部分的文本：{count}",
    "Texts whose words the model mostly does not know: {count}": "大部分词模型不认识的文本：{count}",
    "Cells that begin like a formula and have a ' in front: {count}": (
        "开头像公式、前面加了 ' 的单元格：{count}"
    ),
    "Rows without a label: {count}": "没有标签的行：{count}",
    "line {line}: {problem}": "第 {line} 行：{problem}",
    "Download the list": "下载清单",
    "Remove": "移除",
    "Cancel": "取消",
    "Name its columns above if they have other names, and try again.": (
        "如果列名不同，请在上面填写，然后重试。"
    ),
    "Try again": "重试",
    "{name} is larger than {size}.": "{name} 大于 {size}。",
    "csv, tsv, json, jsonl, txt, parquet or Excel, at most {size} and {rows} rows.": (
        "csv、tsv、json、jsonl、txt、parquet 或 Excel，最多 {size}、{rows} 行。"
    ),
    "The result has the same columns and is kept for an hour, or until it is removed.": (
        "结果保留原有的列，保存一小时，或直到被移除。"
    ),
}
WORDS = tuple(CHINESE)


def words_in(language: str) -> dict[str, str]:
    """The words of the page in one of LANGUAGES, by the English ones."""
    return CHINESE if language == "zh" else dict(zip(WORDS, WORDS, strict=True))
