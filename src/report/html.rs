//! The page around the pictures.

/// Text made safe for HTML bodies and attributes.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A table; cells are HTML.
pub fn table(head: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let head: String = head.iter().map(|cell| format!("<th>{cell}</th>")).collect();
    let body: String = rows
        .into_iter()
        .map(|row| {
            let cells: String = row.iter().map(|cell| format!("<td>{cell}</td>")).collect();
            format!("<tr>{cells}</tr>\n")
        })
        .collect();
    format!("<table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table>")
}

/// A titled part of the page with a line that says how to read it.
pub fn section(title: &str, lead: &str, body: &str) -> String {
    format!("<section><h2>{title}</h2><p class=lead>{lead}</p>\n{body}\n</section>\n")
}

/// The whole page, with its style inside.
pub fn page(title: &str, header: &str, sections: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style></head>\n\
         <body><header>{header}</header>\n<main>{sections}</main></body></html>\n",
        escape(title)
    )
}

const STYLE: &str = "
:root{--paper:#faf8f3;--card:#fff;--ink:#1c1f2b;--soft:#6b6f7d;--line:#e5e1d6;--own:#b72b1d}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,sans-serif}
header,main{max-width:1180px;margin:0 auto;padding:0 28px}
header{padding-top:44px}
h1{font:600 34px/1.15 Georgia,serif;margin:0 0 6px;letter-spacing:-.01em}
h2{font:600 22px/1.2 Georgia,serif;margin:0 0 4px}
h3{font-size:14px;margin:14px 0 6px}
p{margin:0 0 10px;max-width:80ch}
.lead{color:var(--soft)}
.hero{margin:22px 0 8px;display:flex;flex-direction:column;gap:6px}
section{background:var(--card);border:1px solid var(--line);border-radius:14px;padding:24px 26px;margin:22px 0}
.g{vertical-align:middle;max-width:100%}
.own{color:var(--own)}
.faces{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:16px 30px}
.face b{font-weight:600}.face small,.cap{color:var(--soft);font-size:12px}
.face .g{display:block;margin-top:3px}
.near{display:grid;grid-template-columns:repeat(auto-fill,minmax(520px,1fr));gap:14px 26px}
.pick{display:flex;gap:14px;align-items:flex-start;border-top:1px solid var(--line);padding-top:12px}
.pick figure{margin:0;text-align:center}
.pick figcaption{font-size:11px;line-height:1.3;color:var(--soft);max-width:84px;overflow-wrap:anywhere}
.pick .made{padding-right:14px;border-right:1px solid var(--line)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin:18px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 16px}
.tile b{display:block;font:600 24px/1.2 Georgia,serif}.tile span{color:var(--soft);font-size:13px}
table{border-collapse:collapse;font-size:14px}
th{text-align:left;font-weight:600;color:var(--soft);font-size:12px}
th,td{padding:4px 16px 4px 0;border-bottom:1px solid var(--line);vertical-align:middle}
td.n,.num{font-variant-numeric:tabular-nums}
.two{display:flex;flex-wrap:wrap;gap:30px}
svg{max-width:100%;height:auto}
code{font-size:13px}
details summary{cursor:pointer;color:var(--soft)}
";
