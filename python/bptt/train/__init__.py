"""Training of the reference models: settings, run folders, Lightning's loop, reports.

    task        what a task defines: data, model, losses, judgement, pictures
    settings    options that every task has
    folder      a run's folder and its files
    fit         one training, from its last epoch if it was stopped
    report      report.html

Needs the packages of the extra `models`: `pip install bptt[models]`.
"""
