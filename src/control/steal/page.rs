//! Lost CPU time as a page for people: one chart a CPU, drawn here as SVG, so that the page needs no script and no other
//! file.

use std::fmt::Write;

use super::view::{Cpu, LOST_SECONDS_MAX, View};
use crate::base::time::Instant;
use crate::steal::counters::{STEAL, TICK_NS};
use crate::steal::source::Source;

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 120.0;
/// A chart that shows next to nothing still reaches this high.
const TOP_MIN: f64 = 0.2;

/// One share for each second, the latest last; gaps where nothing was sampled.
type Seconds = Vec<Option<f64>>;

pub fn html(view: &View, now: Instant) -> String {
    let mut charts = String::new();
    for cpu in &view.cpus {
        let steal = if view.is_reported() { stolen_seconds(view, cpu.cpu, now) } else { Seconds::new() };
        let lost: Seconds = cpu.worker.map_or_else(Seconds::new, |worker| view.lost_seconds(worker));
        chart(&mut charts, cpu, &steal, &lost);
    }
    format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Ringfort: lost CPU time</title>\n\
         <meta name=\"viewport\" content=\"width=device-width\"><meta http-equiv=\"refresh\" content=\"5\">\n\
         <style>{STYLE}</style>\n<h1>Lost CPU time</h1>\n<p>{}</p>\n{charts}\
         <p>Levels begin at the dashed lines. Mode: <b>{}</b>. As <a href=\"/steal?format=json\">JSON</a>; the last 15 minutes, \
         ten samples a second, as <a href=\"/steal?format=csv\">CSV</a>. <a href=\"/\">Back</a></p>\n",
        verdict(view),
        view.mode.word()
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

fn chart(out: &mut String, cpu: &Cpu, steal: &Seconds, lost: &Seconds) {
    let highest = steal.iter().chain(lost).flatten().copied().fold(0.0, f64::max);
    let top = if highest <= TOP_MIN {
        TOP_MIN
    } else if highest <= 0.5 {
        0.5
    } else {
        1.0
    };
    let y = |ratio: f64| HEIGHT - ratio / top * HEIGHT;
    let share = |ratio: Option<f64>| {
        ratio.map_or_else(|| "unknown".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0))
    };
    let worker = match (cpu.worker, cpu.level) {
        (Some(worker), Some(level)) => {
            let weight = cpu.accept_weight.unwrap_or(1.0);
            format!(", worker {worker} at level {level}, accept weight {weight:.2}")
        }
        _ => ", no worker".to_owned(),
    };
    // Writing to a String cannot fail.
    let _ = write!(
        out,
        "<section><h2>CPU {}</h2>\n<p>now: steal <b>{}</b>, wait <b>{}</b>, lost <b>{}</b>{worker}</p>\n\
         <svg viewBox=\"0 0 {WIDTH} {}\" role=\"img\" aria-label=\"Lost share of CPU {} in the last 15 minutes\">\n",
        cpu.cpu,
        share(cpu.steal_ratio),
        share(cpu.wait_ratio),
        share(Some(cpu.lost_ratio)),
        HEIGHT + 18.0,
        cpu.cpu
    );
    for threshold in [0.05, 0.1] {
        let at = y(threshold);
        let _ =
            writeln!(out, "<line class=\"level\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>");
    }
    bars(out, "lost", lost, &y);
    bars(out, "steal", steal, &y);
    let _ = write!(
        out,
        "<line class=\"axis\" x1=\"0\" x2=\"{WIDTH}\" y1=\"{HEIGHT}\" y2=\"{HEIGHT}\"/>\n\
         <text x=\"0\" y=\"{below}\">15 minutes ago</text><text x=\"{WIDTH}\" y=\"{below}\" class=\"end\">now</text>\
         <text x=\"0\" y=\"11\">{:.0} %</text>\n</svg>\n\
         <p class=\"key\"><span class=\"steal\">■</span> steal <span class=\"lost\">■</span> lost in all, by what a worker sees</p></section>\n",
        top * 100.0,
        below = HEIGHT + 14.0
    );
}

/// One path of a bar a second.
fn bars(out: &mut String, class: &str, seconds: &Seconds, y: &dyn Fn(f64) -> f64) {
    let step = WIDTH / LOST_SECONDS_MAX as f64;
    let skipped = LOST_SECONDS_MAX.saturating_sub(seconds.len());
    let mut path = String::new();
    for (index, ratio) in seconds.iter().enumerate() {
        // A bar of less than a tenth of a percent cannot be seen.
        if let Some(ratio) = ratio.filter(|ratio| *ratio >= 0.001) {
            let x = (skipped + index) as f64 * step;
            let _ = write!(path, "M{x:.1} {HEIGHT}V{:.1}h{step:.1}V{HEIGHT}z", y(ratio));
        }
    }
    let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}\"/>");
}

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:58rem;margin:2rem auto;padding:0 1rem;\
     color:CanvasText;background:Canvas;color-scheme:light dark}h2{font-size:1.1rem;margin:2rem 0 0}p{margin:.3rem 0}\
     svg{width:100%;height:auto;display:block}text{font-size:11px;fill:CanvasText;opacity:.75}.end{text-anchor:end}\
     path.steal{fill:#d1432b}path.lost{fill:#e0a93d}span.steal{color:#d1432b}span.lost{color:#e0a93d}\
     .axis{stroke:#8888}.level{stroke:#888a;stroke-dasharray:4 4}.key{font-size:.85rem}";

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
        assert!(page.contains("steal <b>30.0 %</b>, wait <b>unknown</b>, lost <b>31.0 %</b>"), "{page}");
        assert!(page.contains("worker 0 at level 2, accept weight 0.80") && page.contains("source: kvm"));
        assert_eq!(page.matches("V120z").count(), 11);
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
            let page = html(&view, Instant::ZERO);
            assert!(page.contains(text) && page.contains("no worker"), "{page}");
        }
    }
}
