//! Components of which at most one replica runs at any time. Pure. What is strict stays so, and what is not never becomes
//! it: a host that nobody hears may run it without a lease.

use super::AppState;
use proto::app::App;

/// Why `new` can not follow what there was.
pub(super) fn problem(old: Option<&AppState>, new: &App) -> Option<String> {
    for (name, component) in &new.components {
        let revisions = old.into_iter().flat_map(|app| app.revisions.values().rev());
        let before = revisions.filter_map(|r| r.spec.components.get(name)).map(|c| c.strict).next();
        let before = before.unwrap_or(component.strict);
        if before != component.strict {
            let (is, not) = if before { ("", "not ") } else { ("not ", "") };
            return Some(format!(
                "\"{name}\" is {is}strict and would become {not}strict, which a host that is out of reach could not \
                 know; give the component another name, or delete the app and apply it when it is gone"
            ));
        }
        if component.strict && component.scaler.replicas_at_most_one().is_none() {
            return Some(format!("\"{name}\" is strict: it has 0 or 1 replicas, by a spreadscaler"));
        }
    }
    None
}
