//! Lost CPU time as a page for people: one chart a CPU, drawn here as SVG, so that the page needs no script and no other
//! file.

use std::fmt::Write;

use super::view::{Cpu, LOST_SECONDS_MAX, View};
use crate::base::time::Instant;
use crate::steal::counters::{STEAL, TICK_NS};
use crate::steal::source::Source;

/// The plot's own units, stretched to the width of the page: what is text stands beside it.
const HEIGHT: f64 = 100.0;
/// A chart that shows next to nothing still reaches this high.
const TOP_MIN: f64 = 0.2;
/// While there is no more than these many seconds to show, only they are shown.
const SHORT_SECONDS: usize = 180;

/// One share for each second, the latest last; gaps where nothing was sampled.
type Seconds = Vec<Option<f64>>;

pub fn html(view: &View, now: Instant) -> String {
    let mut charts = String::new();
    let seconds = seconds_shown(view, now);
    for cpu in &view.cpus {
        let steal = if view.is_reported() { stolen_seconds(view, cpu.cpu, now) } else { Seconds::new() };
        let lost: Seconds = cpu.worker.map_or_else(Seconds::new, |worker| view.lost_seconds(worker));
        card(&mut charts, view, cpu, latest(&steal, seconds), latest(&lost, seconds), seconds);
    }
    let key = "<p class=\"key\"><i class=\"steal\"></i>steal: taken by the hypervisor <i class=\"lost\"></i>lost in all: \
               with what other threads, quotas and gaps took from the worker. Levels 1 and 2 begin at \
               the dashed lines.</p>\n";
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Ringfort: lost CPU time</title>\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <meta http-equiv=\"refresh\" content=\"5\">\n<style>{STYLE}</style>\n\
         <header><h1>Lost CPU time</h1><span class=\"pill\">mode {}</span></header>\n<p>{}</p>\n{}{}<main>\n{charts}</main>\n\
         <footer>As <a href=\"/steal?format=json\">JSON</a>; the last 15 minutes, ten samples a second, as \
         <a href=\"/steal?format=csv\">CSV</a>. <a href=\"/workers\">Workers</a>, <a href=\"/\">all pages</a>.</footer>\n",
        view.mode.word(),
        verdict(view),
        in_time(view),
        if view.cpus.is_empty() { "" } else { key },
    )
}

/// What a reader should know before any number.
fn verdict(view: &View) -> String {
    match view.source {
        None => "Lost CPU time is not measured: steal.mode is \"off\".".to_owned(),
        Some((_, false)) => {
            "The counters of steal contradict themselves, as after a live migration: they are not believed for now. What is \
             lost shows as gaps of the workers' loops."
                .to_owned()
        }
        Some((Source::Gap, _)) => {
            "This hypervisor does not report steal: that none is shown does not mean that none is taken. What is lost shows \
             as gaps of the workers' loops."
                .to_owned()
        }
        Some((Source::BareMetal, _)) => "No hypervisor: nobody can steal CPU time here.".to_owned(),
        Some((source, _)) => {
            format!("Steal is what the hypervisor took, as it reports it itself (source: {}).", source.word())
        }
    }
}

/// What clients felt of it.
fn in_time(view: &View) -> String {
    view.in_time_ratio.map_or_else(String::new, |ratio| {
        format!(
            "<p>Of the last minute's requests <b>{:.1} %</b> were answered within {} ms.</p>\n",
            ratio * 100.0,
            view.latency_objective.as_millis()
        )
    })
}

fn seconds_shown(view: &View, now: Instant) -> usize {
    let mut first = None;
    view.trace.each(|at, _| first = first.or(Some(at)));
    let age = first.map_or(0, |first| now.since(first).as_secs() as usize);
    let lost = view.cpus.iter().filter_map(|cpu| cpu.worker).map(|worker| view.lost_seconds(worker).len());
    if age.max(lost.max().unwrap_or(0)) <= SHORT_SECONDS { SHORT_SECONDS } else { LOST_SECONDS_MAX }
}

fn latest(seconds: &Seconds, count: usize) -> &[Option<f64>] {
    &seconds[seconds.len().saturating_sub(count)..]
}

/// Steal of each second of the trace.
fn stolen_seconds(view: &View, cpu: usize, now: Instant) -> Seconds {
    let mut seconds = vec![None; LOST_SECONDS_MAX];
    let mut begin: Option<(Instant, u64)> = None;
    view.trace.each(|at, cpus| {
        let Some(ticks) = cpus.iter().find(|ticks| usize::from(ticks.cpu) == cpu) else {
            begin = None;
            return;
        };
        let steal = ticks.ticks[STEAL];
        let (since, before) = *begin.get_or_insert((at, steal));
        let wall = at.since(since);
        if wall.as_millis() < 950 {
            return;
        }
        begin = Some((at, steal));
        let stolen_ns = steal.saturating_sub(before).saturating_mul(TICK_NS);
        let age = now.since(at).as_secs() as usize;
        if let Some(second) = LOST_SECONDS_MAX.checked_sub(age + 1).and_then(|at| seconds.get_mut(at)) {
            *second = Some((stolen_ns as f64 / wall.as_nanos() as f64).min(1.0));
        }
    });
    seconds
}

/// One CPU: what it loses now, and the chart.
fn card(
    out: &mut String,
    view: &View,
    cpu: &Cpu,
    steal: &[Option<f64>],
    lost: &[Option<f64>],
    seconds: usize,
) {
    const LEVELS: [&str; 4] = ["normal", "elevated", "stolen", "overloaded"];
    let level = cpu.level.map(usize::from);
    // Writing to a String cannot fail.
    let _ = match (cpu.worker, level) {
        (Some(worker), Some(level)) => {
            let word = LEVELS.get(level).unwrap_or(&"");
            writeln!(
                out,
                "<section><h2>CPU {} <small>worker {worker}</small><span class=\"pill l{level}\">level {level}: \
                 {word}</span></h2>",
                cpu.cpu
            )
        }
        _ => writeln!(out, "<section><h2>CPU {} <small>no worker</small></h2>", cpu.cpu),
    };
    let percent = |ratio: f64| format!("{:.1} %", ratio * 100.0);
    let unknown = if view.is_reported() { "unknown" } else { "not reported" };
    let steal_now = cpu.steal_ratio.map_or_else(|| unknown.to_owned(), percent);
    let mut facts = vec![("steal", steal_now)];
    if cpu.worker.is_some() {
        facts.push(("wait", cpu.wait_ratio.map_or_else(|| "unknown".to_owned(), percent)));
        facts.push(("lost in all", percent(cpu.lost_ratio)));
        facts.push(("accept weight", format!("{:.2}", cpu.accept_weight.unwrap_or(1.0))));
    }
    out.push_str("<dl>");
    for (name, value) in facts {
        let _ = write!(out, "<div><dt>{name}</dt><dd>{value}</dd></div>");
    }
    out.push_str("</dl>\n");
    chart(out, view, cpu.cpu, steal, lost, seconds);
    out.push_str("</section>\n");
}

fn chart(
    out: &mut String,
    view: &View,
    cpu: usize,
    steal: &[Option<f64>],
    lost: &[Option<f64>],
    seconds: usize,
) {
    let highest = steal.iter().chain(lost).flatten().copied().fold(0.0, f64::max);
    let top = [TOP_MIN, 0.5].into_iter().find(|top| highest <= *top).unwrap_or(1.0);
    let minutes = seconds / 60;
    let _ = writeln!(
        out,
        "<div class=\"plot\"><svg viewBox=\"0 0 {seconds} {HEIGHT}\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"Lost share of CPU {cpu} in the last {minutes} minutes\">"
    );
    bars(out, "lost", lost, top, seconds);
    bars(out, "steal", steal, top, seconds);
    out.push_str("</svg>");
    let _ = write!(out, "<span class=\"top\">{:.0} %</span>", top * 100.0);
    for (level, from) in (1..).zip(view.levels_from).filter(|(_, from)| *from < top) {
        let at = from / top * 100.0;
        let _ = write!(
            out,
            "<hr style=\"bottom:{at:.1}%\" title=\"level {level} begins at {:.0} %\">",
            from * 100.0
        );
    }
    let _ = write!(
        out,
        "</div>\n<div class=\"axis\"><span>{minutes} min ago</span><span>{} min</span><span>{} min</span>\
         <span>now</span></div>\n",
        minutes * 2 / 3,
        minutes / 3
    );
}

/// One path of a bar a second.
fn bars(out: &mut String, class: &str, seconds: &[Option<f64>], top: f64, shown: usize) {
    let skipped = shown.saturating_sub(seconds.len());
    let mut path = String::new();
    for (index, ratio) in seconds.iter().enumerate() {
        // A bar of less than a tenth of a percent cannot be seen.
        if let Some(ratio) = ratio.filter(|ratio| *ratio >= 0.001) {
            let y = HEIGHT - ratio / top * HEIGHT;
            let _ = write!(path, "M{} {HEIGHT}V{y:.1}h1V{HEIGHT}z", skipped + index);
        }
    }
    let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}\"/>");
}

const STYLE: &str = ":root{color-scheme:light dark;--page:#f6f6f4;--card:#fff;--line:#d9d9d4;--ink:#1d1d1b;--dim:#66665f;\
     --steal:#c8371f;--lost:#eab04a;--calm:#2c7a4b;--raised:#9a6b00}\
     @media(prefers-color-scheme:dark){:root{--page:#161617;--card:#202022;--line:#3a3a3d;--ink:#ececea;--dim:#a3a39d;\
     --steal:#f0664b;--lost:#b98324;--calm:#63c08a;--raised:#e0b04a}}\
     *{box-sizing:border-box}body{font:16px/1.5 system-ui,sans-serif;max-width:64rem;margin:0 auto;padding:1.5rem 1rem 3rem;\
     color:var(--ink);background:var(--page)}header{display:flex;align-items:center;gap:.8rem;flex-wrap:wrap}\
     h1{font-size:1.7rem;margin:0}p{margin:.5rem 0}a{color:inherit}\
     main{display:grid;gap:1rem;margin:1rem 0;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr))}\
     section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem}\
     h2{font-size:1.1rem;margin:0;display:flex;align-items:baseline;gap:.6rem}small{color:var(--dim);font-weight:normal}\
     .pill{font-size:.8rem;font-weight:600;border:1px solid;border-radius:1rem;padding:.05rem .6rem;color:var(--dim)}\
     h2 .pill{margin-left:auto}.l0{color:var(--calm)}.l1{color:var(--raised)}.l2,.l3{color:var(--steal)}\
     dl{display:grid;grid-template-columns:repeat(4,auto);justify-content:space-between;gap:.3rem .8rem;margin:.7rem 0 .9rem}\
     dt{font-size:.75rem;color:var(--dim)}dd{margin:0;font-size:1.15rem;font-weight:600;font-variant-numeric:tabular-nums}\
     @media(max-width:26rem){dl{grid-template-columns:1fr 1fr}}\
     .plot{position:relative;height:8rem;border-bottom:1px solid var(--dim)}svg{width:100%;height:100%;display:block}\
     .top{position:absolute;top:0;left:0;font-size:.75rem;color:var(--dim);line-height:1}\
     hr{position:absolute;left:0;right:0;margin:0;border:0;border-top:1px dashed var(--dim);opacity:.6}\
     .axis{display:flex;justify-content:space-between;font-size:.75rem;color:var(--dim);padding-top:.2rem}\
     path.steal{fill:var(--steal)}path.lost{fill:var(--lost)}i{display:inline-block;width:.8em;height:.8em;border-radius:2px;\
     margin:0 .4em 0 0}i+i,i.lost{margin-left:.9em}i.steal{background:var(--steal)}i.lost{background:var(--lost)}\
     .key,footer{font-size:.85rem;color:var(--dim)}";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::steal::counters::CpuTicks;
    use crate::steal::source::{Hypervisor, Machine};

    fn cpu(worker: Option<usize>) -> Cpu {
        Cpu {
            cpu: 0,
            worker,
            stolen_ns: Some(1),
            steal_ratio: Some(0.3),
            wait_ratio: None,
            lost_ratio: 0.31,
            level: worker.map(|_| 2),
            accept_weight: worker.map(|_| 0.8),
        }
    }

    #[test]
    fn each_second_of_the_trace_is_a_bar() {
        let mut view = View::default();
        view.source = Some((Source::Kvm, true));
        view.machine = Machine { hypervisor: Hypervisor::Kvm, kvm_features: 32, kvm_hints: 0 };
        view.cpus = vec![cpu(Some(0))];
        for n in 0..=100 {
            let ticks = CpuTicks { cpu: 0, ticks: [0, 0, 0, n * 7, 0, 0, 0, n * 3], has_steal: true };
            view.trace.push(Instant::from_millis(n * 100), &[ticks]);
        }
        let now = Instant::from_millis(10_000);
        let seconds = stolen_seconds(&view, 0, now);
        let stolen: Vec<f64> = seconds.iter().flatten().copied().collect();
        assert_eq!(stolen, [0.3; 10]);
        assert!(seconds[LOST_SECONDS_MAX - 1].is_some());
        view.push_lost(0, 0.6);
        let page = html(&view, now);
        for (name, value) in
            [("steal", "30.0 %"), ("wait", "unknown"), ("lost in all", "31.0 %"), ("accept weight", "0.80")]
        {
            assert!(page.contains(&format!("<dt>{name}</dt><dd>{value}</dd>")), "{page}");
        }
        assert!(page.contains("level 2: stolen") && page.contains("source: kvm"));
        assert_eq!(page.matches("V100z").count(), 11);
        assert!(page.contains("3 min ago") && page.contains("bottom:10.0%"), "{page}");
        assert!(!page.contains("within"), "no request, no share of them");
        view.in_time_ratio = Some(0.9951);
        (0..200).for_each(|_| view.push_lost(0, 0.0));
        let page = html(&view, now);
        assert!(
            page.contains("<b>99.5 %</b> were answered within 25 ms") && page.contains("15 min ago"),
            "{page}"
        );
    }

    #[test]
    fn what_is_not_known_is_said() {
        let mut view = View::default();
        assert!(html(&view, Instant::ZERO).contains("not measured"));
        view.cpus = vec![cpu(None)];
        for (source, text) in [
            ((Source::Gap, true), "does not report steal"),
            ((Source::Kvm, false), "contradict"),
            ((Source::BareMetal, true), "No hypervisor"),
        ] {
            view.source = Some(source);
            view.cpus[0].steal_ratio = None;
            let page = html(&view, Instant::ZERO);
            assert!(page.contains(text) && page.contains("no worker"), "{page}");
            assert_eq!(page.contains("not reported"), source.0 == Source::Gap);
        }
    }
}
